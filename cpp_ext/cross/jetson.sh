#!/usr/bin/env bash
# Cross-builds the wheel of edgediff-kernels for 64-bit Arm (Jetson) on an x86-64 machine: jetson.sh [OUT]
#   PYTHON         whose version the wheel is for (default python3; its headers are used: both are LP64, little-endian)
#   ARCHITECTURES  CUDA's, in CMake's words (default: Orin and Thor, and PTX for others)
# Needs nvcc 13, aarch64-linux-gnu-g++ and pip's network. JetPack 7 runs the result; JetPack 6 (CUDA 12.6) does not.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:-dist}")
python=${PYTHON:-python3}
architectures=${ARCHITECTURES:-87-real;110-real;75-virtual}

missing() { echo "jetson.sh: $1" >&2; exit 77; }
command -v aarch64-linux-gnu-g++ >/dev/null || missing "no aarch64-linux-gnu-g++; apt-get install g++-aarch64-linux-gnu"
command -v "${CUDACXX:-nvcc}" >/dev/null || missing "no nvcc; install CUDA 13, or set CUDACXX"
version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download -q --no-deps --only-binary=:all: --platform manylinux2014_aarch64 -d "$work" \
  nvidia-cuda-runtime==13.0.96 || missing "pip cannot download nvidia-cuda-runtime for aarch64"
(cd "$work" && "$python" -m zipfile -e nvidia_cuda_runtime-*.whl cudart)
EDGEDIFF_CUDA_HOME=$("${CUDACXX:-nvcc}" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#$ TOP=//p')
EDGEDIFF_CUDART=$(dirname "$(find "$work/cudart" -name libcudart_static.a | head -n1)")
export EDGEDIFF_CUDA_HOME EDGEDIFF_CUDART

# The names of the target's wheel and extension, as its own Python would give them.
export _PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=.cpython-$version-aarch64-linux-gnu.so
"$python" -m pip wheel -q --no-deps -w "$out" "$here/.." \
  --config-settings=build-dir="$work/build" \
  --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE="$here/aarch64.cmake" \
  --config-settings=cmake.define.EDGEDIFF_CUDA=ON \
  --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES="$architectures"
ls "$out"/edgediff_kernels-*aarch64.whl
