#!/usr/bin/env bash
# Cross-builds the wheel of edgediff-kernels for 64-bit Arm (Jetson, CUDA 13) on an x86-64 Debian or Ubuntu:
# jetson.sh [OUT]
#   PYTHON          a Python here of the target's minor version (default: python3)
#   PYTHON_INCLUDE  the target's own Python headers, where you have them (default: those of PYTHON)
#   ARCHITECTURES   compute capabilities to compile the CUDA kernels for (default: 87;110, Orin and Thor)
#   CUDACXX         nvcc (default: the one on the PATH)
# Exits with 77, and says why, where something it needs is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-dist}
python=${PYTHON:-python3}
nvcc=${CUDACXX:-nvcc}
architectures=${ARCHITECTURES:-87;110}

lacks=()
need() { command -v "$1" >/dev/null || lacks+=("$1: $2"); }
need aarch64-linux-gnu-g++ "apt-get install g++-aarch64-linux-gnu"
need "$nvcc" "install CUDA 13, and put nvcc on the PATH or its path in CUDACXX"
# Of this system: in this build pip would fetch the target's, which cannot run here.
need cmake "apt-get install cmake (3.24 or later; where it is older, pip install cmake)"
command -v make >/dev/null || need ninja "apt-get install ninja-build"
need "$python" "apt-get install python3 python3-dev python3-pip, or name another in PYTHON"
if command -v "$python" >/dev/null; then
  "$python" -m pip --version >/dev/null 2>&1 || lacks+=("pip of $python: apt-get install python3-pip")
  include=${PYTHON_INCLUDE:-$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')}
  [[ -e $include/Python.h ]] || lacks+=("$include/Python.h: apt-get install python3-dev")
fi
if ((${#lacks[@]})); then
  echo "jetson.sh: missing here:" >&2
  printf '  %s\n' "${lacks[@]}" >&2
  exit 77
fi
missing() { echo "jetson.sh: $1" >&2; exit 77; }
cmake=$(cmake --version | sed -n '1s/.* //p')
[[ $(printf '3.24\n%s\n' "$cmake" | sort -V | head -n1) == 3.24 ]] ||
  missing "cmake is $cmake; this needs 3.24 or later (pip install cmake)"
cuda=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
((${cuda%%.*} >= 13)) || missing "$nvcc is of CUDA $cuda; this needs 13.0 or later (for JetPack 6 see README.md)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Python's headers are the same but for pyconfig.h, and that differs in no size and no layout: both are LP64 and
# little-endian.
# Debian's picks one by the compiler's architecture; this machine's is put in its place.
if [[ -z ${PYTHON_INCLUDE:-} ]]; then
  cp -rL "$include" "$work/include"
  multiarch=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("MULTIARCH"))')
  own=$(dirname "$include")/$multiarch/$(basename "$include")/pyconfig.h
  if [[ -e $own ]]; then cp "$own" "$work/include"; fi
  include=$work/include
fi

# The names of the target's wheel and extension, as its own Python would give them.
version=$("$python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
export _PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=.cpython-$version-aarch64-linux-gnu.so
CUDACXX=$nvcc "$python" -m pip wheel -q --no-deps -w "$work/wheel" "$here/.." \
  --config-settings=build-dir="$work/build" \
  --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE="$here/aarch64.cmake" \
  --config-settings=cmake.define.EDGEDIFF_CUDA=ON \
  --config-settings=cmake.define.EDGEDIFF_ARCHITECTURES="$architectures" \
  --config-settings=cmake.define.Python_INCLUDE_DIR="$include"

"$python" -m zipfile -e "$work"/wheel/*.whl "$work/unpacked"
library=$work/unpacked/edgediff_kernels/_kernels$SETUPTOOLS_EXT_SUFFIX
needed=$(aarch64-linux-gnu-readelf -d "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | paste -sd ' ')
[[ $needed != *libcud* ]] || { echo "jetson.sh: the library needs $needed; no CUDA library may be among them" >&2; exit 1; }
mkdir -p "$out"
mv "$work"/wheel/*.whl "$out"
ls "$out"/edgediff_kernels-*-"cp$version"-linux_aarch64.whl
echo "for GPUs: $("$python" "$here/architectures.py" "$work/unpacked/edgediff_kernels/kernels.fatbin")"
echo "needs: $needed"
