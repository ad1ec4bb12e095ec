# Cross-compiling for 64-bit Arm Linux. EDGEDIFF_CUDA_HOME: the CUDA toolkit of this machine, whose headers serve every
# target; EDGEDIFF_CUDART: a folder with the target's libcudart_static.a.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)
# The target's runtime stands in front of the one beside nvcc, which is this machine's and which the linker passes over.
set(CMAKE_CUDA_FLAGS_INIT
    "-L$ENV{EDGEDIFF_CUDART} -I$ENV{EDGEDIFF_CUDA_HOME}/include -I$ENV{EDGEDIFF_CUDA_HOME}/include/cccl")
set(CMAKE_MODULE_LINKER_FLAGS_INIT "-L$ENV{EDGEDIFF_CUDART}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
