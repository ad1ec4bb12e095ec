# Toolchain: from x86-64 Linux to aarch64 Linux (Jetson), with CUDA.
#
# From the environment, as the projects by which CMake tries a compiler see no variable of ours:
#   EDGEDIFF_CUDA_INCLUDE  CUDA's headers
#   EDGEDIFF_CUDART        the folder of the target's libcudart_static.a
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)
# With this host compiler nvcc looks beside itself for a toolkit of aarch64; one for x86-64 alone has none.
set(CMAKE_CUDA_FLAGS_INIT
    "-I$ENV{EDGEDIFF_CUDA_INCLUDE} -isystem $ENV{EDGEDIFF_CUDA_INCLUDE}/cccl -L$ENV{EDGEDIFF_CUDART}")
