# Cross-compiling for 64-bit Arm Linux, with CUDA. From the environment, as the projects by which CMake tries a compiler
# see no variable of ours: EDGEDIFF_CUDA_HOME, the CUDA toolkit of this machine, whose headers serve every target;
# EDGEDIFF_CUDART, a folder with the target's libcudart_static.a.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)
# With this host compiler nvcc looks beside itself for a toolkit of aarch64, and one for x86-64 alone has none.
set(CMAKE_CUDA_FLAGS_INIT
    "-L$ENV{EDGEDIFF_CUDART} -I$ENV{EDGEDIFF_CUDA_HOME}/include -isystem $ENV{EDGEDIFF_CUDA_HOME}/include/cccl")
