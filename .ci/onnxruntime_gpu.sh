#!/usr/bin/env bash
# onnxruntime-gpu, which cannot share an environment with onnxruntime, opened where there is no GPU: pictures on the CPU,
# and a typed reason, without a word on the screen, for everything else. 77 says that it cannot be tried here.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ldconfig -p 2>/dev/null | grep -q libcuda.so.1; then
  echo "an NVIDIA driver is here"
  exit 77
fi
python3 -m venv "$work/venv"
# shellcheck disable=SC1091
. "$work/venv/bin/activate"
# Without the gigabytes of CUDA that the extra gpu brings; one of its libraries lies elsewhere on Python's path.
pip install '.[cuda]' onnxruntime-gpu ./cpp_ext || { echo "onnxruntime-gpu: not installable here"; exit 77; }
pip install --no-deps --target "$work/elsewhere" nvidia-curand
cd "$work"
edgediff generate "a red apple" --seed 7 -o out.png 2>&1 | tee said
grep -qx 'out.png (seed 7)' said
PYTHONPATH="$work/elsewhere" python - 2>said.err <<'END'
import threading

import onnxruntime

import edgediff
from edgediff.engines.base import EngineOptions
from edgediff.engines.onnxruntime import BACKEND


class Device:
    """As much of a CUDA device as opening a part needs."""

    ordinal, stream, lock = 0, 0, threading.RLock()


def reason(call):
    try:
        call()
    except edgediff.EngineError as error:
        print(error)
        return str(error)
    raise SystemExit("it ran")


bundle = edgediff.load().bundle
assert "no NVIDIA driver" in reason(lambda: edgediff.load(device="cuda"))
for device, providers in ((Device(), None), (None, ["CUDAExecutionProvider"]), (None, ["TensorrtExecutionProvider"])):
    said = reason(lambda: BACKEND.open(bundle, "unet", EngineOptions(providers=providers), device))
    assert "cannot open shared object file" in said
    assert onnxruntime.__version__ in said
with open("/proc/self/maps") as f:
    assert any("/elsewhere/nvidia/" in line and "/libcurand.so" in line for line in f)
asked = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
said = reason(lambda: BACKEND.open(bundle, "unet", EngineOptions(providers=asked), None))
assert "arrays that stay on a CUDA device" in said
END
cat said.err
test ! -s said.err
