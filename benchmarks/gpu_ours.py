"""edgediff on the device at hand, and what is measured around it. Used by ``benchmarks.gpu``."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgediff
from edgediff.bundle import read
from edgediff.cuda import DeviceArray
from edgediff.device import CudaDevice, Device
from edgediff.engines import Provider, StreamEngine
from edgediff.engines.parts import Wish
from edgediff.engines.plans import Cache
from edgediff.pipeline import Pipeline

PROMPT = "a red apple on a blue background"
SAMPLER = "ddim"  # without noise of its own, and the same in diffusers


@dataclass(frozen=True)
class Run:
    """What the sections share.

    Args:
        folder: a bundle that ``gpu_hollow.fill`` has filled.
        emoji: another bundle, of the built-in model in fp16; the built-in itself when None.
        dry: without a GPU, on a device in host memory.
        steps, pictures: of each measurement.
        plans: the folder of TensorRT plans.
    """

    folder: Path
    emoji: Path | None = None
    dry: bool = False
    steps: int = 20
    pictures: int = 5
    plans: Path | None = None

    @property
    def place(self) -> str:
        """Where torch runs."""
        return "cpu" if self.dry else "cuda"

    def device(self) -> Any:
        if not self.dry:
            return CudaDevice()
        from tests.kernels.host_device import HostDevice

        return HostDevice()

    def call(self, **other: Any) -> dict[str, Any]:
        """A request as diffusers and edgediff take it alike."""
        return {"prompt": PROMPT, "num_inference_steps": self.steps, "guidance_scale": 7.5} | other

    def pipe(
        self, engine: str = "onnx", providers: Sequence[Provider] | None = None, bundle: Path | None = None
    ) -> Any:
        """A pipeline on the device."""
        folder = self.folder if bundle is None else bundle
        if not self.dry:
            return edgediff.load(folder, device="cuda", engine=engine if providers is None else None,
                                 providers=providers, plans=self.plans)  # fmt: skip
        cache = Cache(self.plans or Path("plans"))
        return Pipeline(read(folder), "cuda", Wish(engine=engine, cache=cache), _device=self.device())


def timed(work: Callable[[], Any], turns: int) -> list[float]:
    """Seconds of each turn, after one that is not counted."""
    work()
    out = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        out.append(time.perf_counter() - start)
    return out


def unet_call(pipe: Pipeline, cells: tuple[int, int], turns: int) -> dict[str, float]:
    """The U-Net alone, batch 2: seconds a call, of which the host was kept in ``enqueue``; and the first call's."""
    device: Device | None = pipe._device
    assert device is not None
    part = pipe.bundle.parts["unet"]
    sizes = {"batch": 2, "latent_height": cells[0], "latent_width": cells[1], "tokens": pipe.bundle.text[0].max_length}
    rng = np.random.default_rng(0)
    memory: list[int] = []

    def place(tensor: Any) -> DeviceArray:
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in tensor.shape)
        array = DeviceArray(device.allocate(DeviceArray(0, shape, tensor.dtype).nbytes), shape, tensor.dtype)
        memory.append(array.address)
        values = np.full(shape, 500) if tensor.name == "timestep" else rng.standard_normal(shape, np.float32)
        device.upload(array.address, values.astype(tensor.dtype))
        return array

    inputs = {t.name: place(t) for t in part.inputs}
    outputs = {t.name: place(t) for t in part.outputs}
    engine: Any = pipe.engine("unet", {name: array.shape for name, array in inputs.items()})
    first = _enqueued(engine, device, inputs, outputs, 1)
    _enqueued(engine, device, inputs, outputs, 2)
    runs = [_enqueued(engine, device, inputs, outputs, turns) for _ in range(3)]
    for address in memory:
        device.free(address)
    return {
        "first_s": first[0],
        "call_s": statistics.median(whole / turns for whole, _ in runs),
        "host_s": statistics.median(host / turns for _, host in runs),
    }


def _enqueued(
    engine: StreamEngine,
    device: Device,
    inputs: dict[str, DeviceArray],
    outputs: dict[str, DeviceArray],
    turns: int,
) -> tuple[float, float]:
    """Seconds until all is done, and until the host was free again; by a captured graph where that is possible."""
    device.wait(device.mark())

    def work() -> None:
        engine.enqueue(inputs, outputs, device.stream)

    graph = None
    if engine.capturable and turns > 1:
        graph = device.capture(work)
    start = time.perf_counter()
    for _ in range(turns):
        device.launch(graph) if graph is not None else work()
    host = time.perf_counter() - start
    device.wait(device.mark())
    return time.perf_counter() - start, host


class Peak:
    """Most memory in use during a ``with`` block: of the whole GPU, or of this process on the host."""

    def __init__(self, dry: bool) -> None:
        self.mb, self._dry, self._stop = 0.0, dry, threading.Event()

    def __enter__(self) -> Peak:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._look()

    def _look(self) -> None:
        self.mb = max(self.mb, used_mb(self._dry))


def used_mb(dry: bool) -> float:
    """Megabytes in use: of GPU 0, by whomever; of this process at its peak in a dry run."""
    if dry:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    import pynvml

    pynvml.nvmlInit()
    return float(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used) / 1e6
