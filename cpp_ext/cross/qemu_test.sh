#!/usr/bin/env bash
# Runs the kernels' tests on a cross-built wheel under qemu-user: qemu_test.sh WHEEL [pytest's arguments]
#   PYTHON   whose pip fetches NumPy and pytest (default: python3)
#   SOURCES  a file of apt's sources, of a release that has the wheel's Python (default: this machine's)
#   SYSROOT  a root folder of the target with its Python, such as a copy of a Jetson's (default: made of arm64 packages)
# Nothing is installed: all of it is unpacked in a temporary folder. Exits with 77, and says why, where it cannot run.
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
wheel=$(realpath "${1:?qemu_test.sh WHEEL [pytest arguments]}")
shift
python=${PYTHON:-python3}

missing() { echo "qemu_test.sh: $1" >&2; exit 77; }
command -v qemu-aarch64 >/dev/null || missing "no qemu-aarch64; apt-get install qemu-user"
version=$(basename "$wheel" | sed -nE 's/.*-cp3([0-9]+)-.*aarch64\.whl/3.\1/p')
[[ -n $version ]] || missing "$wheel is no aarch64 wheel of one Python"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ -z ${SYSROOT:-} ]]; then
  command -v dpkg >/dev/null || missing "no dpkg: name a root folder of the target in SYSROOT"
  # An apt with lists, a cache and a record of what is installed (nothing) of its own: this machine's stay as they are.
  mkdir -p "$work"/apt/{lists,archives}/partial
  : >"$work/apt/status"
  apt=(apt-get -qq -oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oAPT::Sandbox::User= -oDebug::NoLocking=1
    -oAcquire::Languages=none -oDir::State::Lists="$work/apt/lists" -oDir::State::status="$work/apt/status"
    -oDir::Cache="$work/apt" -oDir::Cache::archives="$work/apt/archives")
  if [[ -n ${SOURCES:-} ]]; then
    apt+=(-oDir::Etc::sourcelist="$(realpath "$SOURCES")" -oDir::Etc::sourceparts=/dev/null)
  fi
  "${apt[@]}" update || true  # a source without arm64 fails; whether the packages come is what counts
  "${apt[@]}" install -y --no-install-recommends --download-only "python$version" libstdc++6 zlib1g >/dev/null ||
    missing "no arm64 packages of Python $version in this release; name another's in SOURCES"
  SYSROOT=$work/root
  mkdir -p "$SYSROOT"/usr/{bin,lib,sbin}
  for folder in bin lib sbin; do ln -s "usr/$folder" "$SYSROOT/$folder"; done
  for deb in "$work"/apt/archives/*.deb; do dpkg -x "$deb" "$SYSROOT"; done
fi

# As pip on the device would: the wheel's tags are put to the test as well.
"$python" -m pip install -q --target "$work/site" --only-binary=:all: --python-version "$version" --implementation cp \
  --platform linux_aarch64 --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$wheel" numpy pytest ||
  missing "pip cannot install the wheel, NumPy and pytest for aarch64"

# Left out: what starts another Python, which the emulator cannot; and what is the same on every processor, the machine
# code for GPUs and its interpreter.
cd "$root"
ln -s "$root/cpp_ext/cuda" "$work/site/edgediff_cuda"  # as edgediff's own wheel has it
export PYTHONPATH=$work/site:$root PYTHONDONTWRITEBYTECODE=1
target=(qemu-aarch64 -L "$SYSROOT" "$SYSROOT/usr/bin/python$version")
"${target[@]}" -c 'import platform, numpy, edgediff_kernels as kernels
print(platform.machine(), "Python", platform.python_version(), "NumPy", numpy.__version__, "kernels", kernels.__version__)'
"${target[@]}" -m pytest -p no:cacheprovider -q tests/device tests/sampling/test_kernels.py tests/sampling/test_update.py \
  --ignore=tests/device/ptx --ignore=tests/device/test_fatbin.py \
  --deselect tests/sampling/test_kernels.py::test_the_package_is_looked_for_only_when_needed \
  --deselect tests/device/test_cuda_opening.py::test_no_driver "$@"
