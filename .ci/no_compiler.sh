#!/usr/bin/env bash
# `pip install '.[gpu]'` where no compiler is on the PATH: the CUDA kernels are there, compiled by NVRTC and kept, and the
# real cuda-core loads and launches them on a stub of NVIDIA's driver. 77 says that it cannot be tried here.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap '/bin/rm -rf "$work"' EXIT
if ldconfig -p 2>/dev/null | grep -q libcuda.so.1; then
  echo "an NVIDIA driver is here"
  exit 77
fi
command -v cc >/dev/null || { echo "there is no C compiler for the stub driver"; exit 77; }
python3 -m venv "$work/venv"
mkdir "$work/stub"
cc -shared -fPIC -O2 -fvisibility=hidden -o "$work/stub/libcuda.so.1" tests/device/stub/*.c -ldl -lpthread
export PATH=$work/venv/bin
for tool in cc c++ gcc g++ nvcc cmake; do
  if command -v $tool; then echo "$tool is on the PATH"; exit 1; fi
done
pip install '.[gpu]' || { echo "[gpu]: not installable here"; exit 77; }
cd "$work"
LD_LIBRARY_PATH=$work/stub EDGEDIFF_CACHE=$work/cache python - <<'END'
import os
import time

from edgediff.device.cuda import CudaDevice, why_no_device
from edgediff.device.loop import DeviceLoop
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCudaGenerator
from edgediff.sampling.schedule import Schedule


class Model:
    capture, warm_runs, key = "always", 1, 0

    def enqueue(self, *arguments):
        pass


assert not why_no_device(), why_no_device()
for turn in ("compiled", "kept"):
    start = time.perf_counter()
    device = CudaDevice()
    print(f"{device.name}: {device.kernels.origin}, {turn}, {time.perf_counter() - start:.2f} s")
    loop = DeviceLoop(device, Model(), (1, 4, 64, 64), rows=20)
    assert len(list(loop.run(plan(Schedule(), "dpmpp_2m", 20, 7.5), [TorchCudaGenerator(7)]))) == 20
    loop.close()
    device.close()
    (kept,) = os.listdir(os.environ["EDGEDIFF_CACHE"])
    assert kept.startswith("kernels-")
END
