#!/usr/bin/env bash
# Cross-builds a wheel of edgediff-kernels for Jetson (aarch64, CUDA 13) on an x86-64 Debian or Ubuntu.
#
#   jetson.sh [OUT]        the wheel goes to OUT; default: dist
#
#   PYTHON          a Python here of the target's minor version; default: python3
#   PYTHON_INCLUDE  the target's own Python headers, where you have them; default: those of $PYTHON
#   ARCHITECTURES   as CMAKE_CUDA_ARCHITECTURES; default: Orin, Thor, and PTX for any other GPU
#   CUDACXX         nvcc; default: the one on the PATH
#
# Exits with 77 where something it needs is missing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-dist}
python=${PYTHON:-python3}
nvcc=${CUDACXX:-nvcc}
architectures=${ARCHITECTURES:-87-real;110-real;75-virtual}

missing=()
need() { command -v "$1" >/dev/null || missing+=("$1: $2"); }
need aarch64-linux-gnu-g++ "apt-get install g++-aarch64-linux-gnu"
need "$nvcc" "install the CUDA toolkit, 13.0 or later, and put nvcc on the PATH or its path in CUDACXX"
# From the system: pip would fetch cmake and ninja of the target, which cannot run here.
need cmake "apt-get install cmake (3.24 or later; where it is older, pip install cmake)"
need ninja "apt-get install ninja-build"
need "$python" "apt-get install python3 python3-dev python3-pip, or name another in PYTHON"
if command -v "$python" >/dev/null; then
  "$python" -m pip --version >/dev/null 2>&1 || missing+=("pip of $python: apt-get install python3-pip")
  include=${PYTHON_INCLUDE:-$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')}
  [[ -e $include/Python.h ]] || missing+=("$include/Python.h: apt-get install python3-dev")
fi
if ((${#missing[@]})); then
  echo "jetson.sh: missing here:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  exit 77
fi
cuda=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
if ((${cuda%%.*} < 13)); then
  echo "jetson.sh: $nvcc is of CUDA $cuda; this needs 13.0 or later. For JetPack 6 see README.md." >&2
  exit 77
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The target's CUDA runtime, of nvcc's version. It is linked statically: the device needs the driver alone.
if ! "$python" -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux2014_aarch64 \
  --dest "$work" "nvidia-cuda-runtime==$cuda.*"; then
  echo "jetson.sh: pip could not fetch nvidia-cuda-runtime==$cuda.* for aarch64" >&2
  exit 77
fi
"$python" -m zipfile -e "$work"/nvidia_cuda_runtime-*.whl "$work/runtime"
EDGEDIFF_CUDART=$(dirname "$(find "$work/runtime" -name libcudart_static.a)")
# CUDA's headers are the same for both; nvcc knows where its own lie.
EDGEDIFF_CUDA_INCLUDE=$("$nvcc" --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ INCLUDES="-I\([^"]*\)".*/\1/p')
export EDGEDIFF_CUDART EDGEDIFF_CUDA_INCLUDE

# So are Python's but for pyconfig.h, and that in nothing that changes a layout: both are LP64 and little-endian.
# Debian's picks one by the compiler's architecture; this machine's is put in its place.
if [[ -z ${PYTHON_INCLUDE:-} ]]; then
  cp -rL "$include" "$work/include"
  own=$(dirname "$include")/$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("MULTIARCH"))')
  own+=/$(basename "$include")/pyconfig.h
  if [[ -e $own ]]; then cp "$own" "$work/include"; fi
  include=$work/include
fi

# scikit-build-core takes the wheel's tag and the extension's suffix from the first two.
minor=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
_PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=.cpython-$minor-aarch64-linux-gnu.so \
  CUDACXX=$nvcc CMAKE_GENERATOR=Ninja \
  "$python" -m pip wheel --verbose --no-deps --wheel-dir "$out" "$here/.." \
  --config-settings=build-dir="$work/build" \
  --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE="$here/aarch64.cmake" \
  --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES="$architectures" \
  --config-settings=cmake.define.EDGEDIFF_CUDA=ON \
  --config-settings=cmake.define.Python_INCLUDE_DIR="$include"

# What came of it.
"$python" -m zipfile -e "$out"/edgediff_kernels-*-"cp$minor-cp$minor"-linux_aarch64.whl "$work/wheel"
library=$work/wheel/edgediff_kernels/_kernels.cpython-$minor-aarch64-linux-gnu.so
needed=$(aarch64-linux-gnu-readelf -d "$library" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | paste -sd ' ')
echo "GPUs: $("$python" "$here/architectures.py" "$library")"
echo "libraries: $needed"
if [[ $needed == *libcudart* ]]; then
  echo "jetson.sh: libcudart is not linked statically" >&2
  exit 1
fi
