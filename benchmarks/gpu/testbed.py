"""Where the sections of ``benchmarks.gpu`` run: on an NVIDIA GPU, or, for a dry run, on a stand-in in host memory."""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.kernel.device import facts as describe
from edgediff.bundle.reading import read_bundle
from edgediff.engines.base import EngineOptions, Provider
from edgediff.engines.session import import_onnxruntime
from edgediff.pipeline import Pipeline

PROMPT, SEED, GUIDANCE = "a red apple on a blue background", 7, 7.5
BLOCK = 2 << 30  # bytes
QUERY = ["nvidia-smi", "--format=csv,noheader,nounits"]


class Testbed:
    """The device of one section, in a process of its own, and the folder it works on.

    Args:
        folder: what ``prepare`` wrote.
        dry: run on the kernels' host twin and ONNX Runtime's CPU provider, few and short.
    """

    def __init__(self, folder: Path, dry: bool) -> None:
        self.folder, self.dry = folder, dry
        self.repeats, self.steps = (2, 3) if dry else (10, 20)
        self.notes = folder / "notes"  # what sections leave for later ones
        self.notes.mkdir(exist_ok=True)
        self._before = used_mb(dry)

    @cached_property
    def device(self) -> Any:
        """The device is opened when first asked for: diffusers' sections have no use for it."""
        if self.dry:
            from edgediff.device.host import HostDevice

            return HostDevice()
        from edgediff.device.cuda import CudaDevice

        return CudaDevice()

    def pipeline(
        self,
        name: str | None,
        engine: str = "onnx",
        providers: Sequence[Provider] | None = None,
        engine_cache: Path | None = None,
    ) -> Pipeline:
        """Open a bundle of the folder, or the built-in model without ``name``, on the device."""
        bundle = read_bundle(None if name is None else self.folder / name)
        options = EngineOptions(None, providers, engine, engine_cache)
        return Pipeline(bundle, options, self.device)

    def request(self, pipe: Pipeline, **more: Any) -> dict[str, Any]:
        """Give the call that is timed and compared: the model's size and sampler, guided."""
        defaults = pipe.bundle.defaults
        size = {"height": defaults.height, "width": defaults.width, "num_inference_steps": self.steps}
        return {"prompt": PROMPT, "seed": SEED, "guidance_scale": GUIDANCE, "output_type": "np", **size, **more}

    def wait(self) -> None:
        """Wait until the device has done all that was enqueued."""
        self.device.wait(self.device.mark())

    def timed(self, work: Callable[[], Any]) -> float:
        """Give the seconds of ``work``, with the device's part of it."""
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def peak_mb(self, work: Callable[[], Any]) -> float | None:
        """Give the most GPU memory in use during ``work``, over what was before; in a dry run, the process's.

        Not while timing: it asks the driver all the time.
        """
        if self.dry:
            work()
            return _host_peak_mb()
        if self._before is None:
            work()
            return None
        seen, done = [self._before], threading.Event()

        def watch() -> None:
            while True:
                last = done.is_set()  # once more afterwards: what engines have taken they keep
                seen.append(used_mb() or 0.0)
                if last:
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            work()
        finally:
            done.set()
            watcher.join()
        return max(seen) - self._before

    def busy(self, seconds: float) -> bool:
        """Enqueue work that takes the device about as long; False where the host is the device."""
        if self.dry:
            return False
        once = min(self.timed(self._fill) for _ in range(5))  # the first one takes the memory, too
        for _ in range(max(1, round(seconds / once))):
            self._fill()
        return True

    @cached_property
    def _block(self) -> int:
        return int(self.device.allocate(BLOCK))

    def _fill(self) -> None:
        """Enqueue what takes a GPU about a millisecond."""
        device = self.device
        device.call(device.driver.cuMemsetD8Async, self._block, 0, BLOCK, device.stream)

    def facts(self) -> dict[str, Any]:
        """Describe the device, where it was opened, and ONNX Runtime."""
        if "device" not in self.__dict__:
            return {}
        ort = import_onnxruntime()
        facts = {"onnxruntime": ort.__version__, "providers": ort.get_available_providers()}
        if self.dry:
            return facts | {"name": "host memory"}
        return facts | describe(self.device)

    def close(self) -> None:
        if "device" in self.__dict__:
            self.device.close()


def _host_peak_mb() -> float:
    """Give the peak memory of this process; what resource tells begins at its parent's."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e3
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def used_mb(dry: bool = False) -> float | None:
    """Give the GPU memory in use, by whomever; None where the driver's tool is not there."""
    found = None if dry else nvidia_smi("memory.used")
    return float(found) if found and found.isdigit() else None


def nvidia_smi(what: str) -> str | None:
    """Ask nvidia-smi for one fact of the first GPU; None where it is not there."""
    try:
        command = [*QUERY, f"--query-gpu={what}", "-i", "0"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
