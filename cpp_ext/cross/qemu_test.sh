#!/usr/bin/env bash
# Runs the tests of the host twin on an aarch64 wheel, on this machine under qemu. The CUDA half needs a Jetson.
#
#   qemu_test.sh WHEEL [PYTEST'S ARGUMENTS]     default: tests/kernels
#
#   PYTHON   a Python here of the wheel's minor version, for its pip; default: python3
#   SOURCES  apt's sources (a file) of a release that has the wheel's Python; default: this machine's
#   SYSROOT  a root of the target with its Python, a copy of a Jetson's, say; default: made of SOURCES's packages
#
# Exits with 77 where something it needs is missing.
set -euo pipefail

die() { echo "qemu_test.sh: $1" >&2; exit 77; }
[[ ${1:-} == *.whl ]] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
wheel=$(realpath "$1")
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
[[ $wheel =~ -cp3([0-9]+)-cp3[0-9]+-linux_aarch64\.whl$ ]] || die "$wheel: not a wheel of aarch64 Linux, by its name"
version=3.${BASH_REMATCH[1]}
command -v qemu-aarch64 >/dev/null || die "qemu-aarch64 is missing: apt-get install qemu-user"
"$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null ||
  die "$python is not Python $version, which the wheel is for; name one in PYTHON"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ -z ${SYSROOT:-} ]]; then
  command -v apt-get >/dev/null || die "apt-get is missing: name a root of the target in SYSROOT"
  # An apt with lists, a cache and a record of what is installed (nothing) of its own: this machine's stay as they are.
  mkdir -p "$work"/apt/{lists,archives}/partial
  : >"$work/apt/status"
  apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=
    -o Acquire::Languages=none -o Dir::State::lists="$work/apt/lists" -o Dir::State::status="$work/apt/status"
    -o Dir::Cache="$work/apt" -o Dir::Cache::archives="$work/apt/archives" -o Debug::NoLocking=1)
  if [[ -n ${SOURCES:-} ]]; then
    apt+=(-o Dir::Etc::sourcelist="$(realpath "$SOURCES")" -o Dir::Etc::sourceparts=/dev/null)
  fi
  "${apt[@]}" update || true  # a source without arm64 fails; what matters is whether the packages come
  "${apt[@]}" install --yes --no-install-recommends --download-only "python$version" libstdc++6 zlib1g >/dev/null ||
    die "apt could not fetch python$version for arm64: name a release that has it in SOURCES"
  SYSROOT=$work/root
  mkdir -p "$SYSROOT"/usr/{bin,lib,sbin}
  for folder in bin lib sbin; do ln -s "usr/$folder" "$SYSROOT/$folder"; done
  for package in "$work"/apt/archives/*.deb; do dpkg -x "$package" "$SYSROOT"; done
fi

# As pip on the device would, and so the wheel's tags are checked too.
platforms=(--platform linux_aarch64)
for glibc in 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" -m pip install --quiet --target "$work/site" --only-binary=:all: "${platforms[@]}" --platform manylinux2014_aarch64 \
  "$wheel" numpy pytest || die "pip could not install the wheel, numpy and pytest for aarch64"

(($#)) || set -- tests/kernels
cd "$root"
export PYTHONPATH=$root:$work/site PYTHONDONTWRITEBYTECODE=1
target=(qemu-aarch64 -L "$SYSROOT" "$SYSROOT/usr/bin/python$version")
"${target[@]}" -c 'import platform, numpy, edgediff_kernels as k
print(platform.machine(), "Python", platform.python_version(), "NumPy", numpy.__version__, k.facts())'
"${target[@]}" -m pytest --noconftest -p no:cacheprovider "$@"
