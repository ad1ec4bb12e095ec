#!/usr/bin/env bash
# Runs the kernels' tests on a cross-built wheel under qemu-user: qemu_test.sh WHEEL [pytest's arguments]
# Needs qemu-aarch64 (Debian: qemu-user), Debian's or Ubuntu's packages and pip's network. Nothing is installed: a small
# root of arm64 packages and wheels is unpacked in a temporary folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(realpath "$here/../..")
wheel=$(realpath "$1")
shift

missing() { echo "qemu_test.sh: $1" >&2; exit 77; }
command -v qemu-aarch64 >/dev/null || missing "no qemu-aarch64; apt-get install qemu-user"
command -v dpkg >/dev/null || missing "no dpkg: the target's Python comes from Debian's packages"
version=$(basename "$wheel" | sed -nE 's/.*-cp3([0-9]+)-.*aarch64\.whl/3.\1/p')
[ -n "$version" ] || missing "$wheel is no aarch64 wheel of one Python"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Lists of their own, so that the machine's architectures stay as they are.
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs,root,site}
apt=(apt-get -qq -oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::State::Lists="$work/lists"
     -oDir::Cache="$work/cache" -oDir::State::status=/dev/null)
"${apt[@]}" update || missing "no lists of arm64 packages can be had"
(cd "$work/debs" && chmod 777 . && "${apt[@]}" download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 \
  "libpython$version-minimal" "libpython$version-stdlib" "python$version-minimal") ||
  missing "no arm64 packages of Python $version in this release; set PYTHON for jetson.sh to the release's own"
for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/root"; done

python3 -m pip download -q -d "$work/wheels" --only-binary=:all: --python-version "$version" --implementation cp \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
  --platform manylinux2014_aarch64 numpy pytest || missing "pip cannot download aarch64 wheels"
for file in "$work"/wheels/*.whl "$wheel"; do python3 -m zipfile -e "$file" "$work/site"; done

# No conftest, which needs what is not here; one test starts another Python, which the emulator cannot.
cd "$root"
PYTHONPATH=$work/site:$root PYTHONDONTWRITEBYTECODE=1 PYTHONHOME=$work/root/usr qemu-aarch64 -L "$work/root" \
  "$work/root/usr/bin/python$version" -m pytest --noconftest -p no:cacheprovider -q tests/kernels \
  --deselect tests/kernels/test_found.py::test_the_package_is_looked_for_only_when_needed "$@"
