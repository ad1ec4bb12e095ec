"""One call of the U-Net by ONNX Runtime's CUDA provider, by option: time, what of it the host spends, error, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.testbed import Testbed
from benchmarks.sections import Report
from edgediff.bundle.manifest import PLAIN
from edgediff.bundle.reading import read_bundle
from edgediff.compare import relative
from edgediff.device.array import DeviceArray
from edgediff.engines.onnxruntime_stream import OnnxRuntimeStreamEngine
from edgediff.engines.providers import CUDA

FIXED = "unet.fixed.onnx"
ROUNDS = 5
BUSY_S = 0.1
TOKENS = 77


@dataclass(frozen=True)
class Variant:
    """One way to open the U-Net."""

    options: Mapping[str, str] = field(default_factory=dict)  # of the CUDA provider
    graph: str = "fused"  # fused (MultiHeadAttention), plain, or fixed (fused, shapes written into it)

    @property
    def captures(self) -> bool:
        return self.options.get("enable_cuda_graph") == "1"


# sdpa_kernel is a sum of bits: 1 flash, 2 efficient, 8 cuDNN's flash, 16 plain products (attention_parameters.h of
# ONNX Runtime). A name is the section's, after "option ".
VARIANTS: dict[str, Variant] = {
    "none": Variant(),
    "plain": Variant(graph="plain"),
    "nhwc": Variant({"prefer_nhwc": "1"}),
    "graph": Variant({"enable_cuda_graph": "1"}),
    "fixed": Variant(graph="fixed"),
    "fixed graph": Variant({"enable_cuda_graph": "1"}, "fixed"),
    "fixed graph nhwc": Variant({"enable_cuda_graph": "1", "prefer_nhwc": "1"}, "fixed"),
    "fixed nhwc": Variant({"prefer_nhwc": "1"}, "fixed"),
    "graph nhwc": Variant({"enable_cuda_graph": "1", "prefer_nhwc": "1"}),
    "sdpa flash": Variant({"sdpa_kernel": "1"}),
    "sdpa efficient": Variant({"sdpa_kernel": "2"}),
    "sdpa cudnn": Variant({"sdpa_kernel": "8"}),
    "sdpa math": Variant({"sdpa_kernel": "16"}),
    "conv heuristic": Variant({"cudnn_conv_algo_search": "HEURISTIC"}),
    "conv default": Variant({"cudnn_conv_algo_search": "DEFAULT"}),
    "conv little workspace": Variant({"cudnn_conv_use_max_workspace": "0"}),
    "fused bias": Variant({"fuse_conv_bias": "1"}),
    "no tf32": Variant({"use_tf32": "0"}),
}
DRY = ("none", "plain", "fixed")


def path_of(testbed: Testbed, graph: str) -> Path:
    """Give the U-Net's file; one of fixed shapes is written beside it, over the same weights."""
    bundle = read_bundle(testbed.folder / "sd")
    part = bundle.parts["unet"]
    if graph == "plain":
        return testbed.folder / "sd" / next(f.path for f in part.files if f.engine == PLAIN)
    path = testbed.folder / "sd" / part.files[0].path
    if graph == "fused":
        return path
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    shapes = {name: values.shape for name, values in inputs(testbed).items()}
    shapes["out_sample"] = shapes["sample"]
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    del model.graph.value_info[:]
    fixed = path.with_name(FIXED)
    onnx.save(model, str(fixed))
    return fixed


def engine(testbed: Testbed, variant: Variant) -> OnnxRuntimeStreamEngine:
    """Open the U-Net as ``variant`` says, on the testbed's stream."""
    providers = None if testbed.dry else [(CUDA, dict(variant.options))]
    part = read_bundle(testbed.folder / "sd").parts["unet"]
    return OnnxRuntimeStreamEngine("unet", path_of(testbed, variant.graph), part, None, testbed.device, providers)


def inputs(testbed: Testbed, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Make the inputs of a guided call of one picture."""
    bundle = read_bundle(testbed.folder / "sd")
    rng, out = np.random.default_rng(seed), {}
    sizes = {"batch": 2, "tokens": TOKENS}
    sizes["latent_height"] = bundle.defaults.height // bundle.latent.factor
    sizes["latent_width"] = bundle.defaults.width // bundle.latent.factor
    for tensor in bundle.parts["unet"].inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in tensor.shape]
        values = np.full(shape, 500 + seed) if tensor.name == "timestep" else rng.standard_normal(shape)
        out[tensor.name] = values.astype(tensor.dtype)
    return out


def option(report: Report, testbed: Testbed, name: str) -> None:
    """Measure one variant. The others are held against what the first one gave."""
    variant, figures = VARIANTS[name], report.figures
    figures |= {"options": dict(variant.options), "graph": variant.graph}
    opened: list[OnnxRuntimeStreamEngine] = []

    def open_and_run() -> None:
        start = time.perf_counter()
        opened.append(engine(testbed, variant))
        figures["opens_s"] = round(time.perf_counter() - start, 3)
        call()
        figures["first_s"] = round(time.perf_counter() - start - figures["opens_s"], 3)
        for _ in range(3):
            call()

    device, first, second = testbed.device, inputs(testbed), inputs(testbed, 1)
    bound = {k: DeviceArray(device.allocate(v.nbytes), v.shape, str(v.dtype)) for k, v in first.items()}
    made = np.zeros(first["sample"].shape, read_bundle(testbed.folder / "sd").parts["unet"].outputs[0].dtype)
    out = DeviceArray(device.allocate(made.nbytes), made.shape, str(made.dtype))

    def call() -> None:
        opened[0].enqueue(bound, {"out_sample": out}, device.stream)
        testbed.wait()

    _upload(device, bound, first)
    peak = testbed.peak_mb(open_and_run)
    figures["peak_mb"] = None if peak is None else round(peak)
    host, whole = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(testbed.repeats):
            opened[0].enqueue(bound, {"out_sample": out}, device.stream)
        host.append((time.perf_counter() - start) / testbed.repeats)
        testbed.wait()
        whole.append((time.perf_counter() - start) / testbed.repeats)
    figures["call_ms"] = round(1e3 * statistics.median(whole), 4)
    figures["host_ms"] = round(1e3 * statistics.median(host), 4)
    if testbed.busy(BUSY_S):  # does a call wait for what was enqueued before it?
        start = time.perf_counter()
        opened[0].enqueue(bound, {"out_sample": out}, device.stream)
        returned = time.perf_counter() - start
        testbed.wait()
        figures["behind_busy_ms"] = [round(1e3 * returned, 3), round(1e3 * (time.perf_counter() - start), 3)]
        # One that is not captured may have to wait for room in the queue of launches, of about 1000.
        figures["returns_at_once"] = returned < BUSY_S / 2
    outputs = []
    for values in (first, second):  # a captured graph must read what lies there now
        _upload(device, bound, values)
        call()
        device.download(out.address, made)
        outputs.append(made.astype(np.float32))
    _compare(report, testbed, name, np.stack(outputs))


def _upload(device: Any, bound: Mapping[str, DeviceArray], values: Mapping[str, NDArray[Any]]) -> None:
    for name, array in bound.items():
        device.upload(array.address, values[name])


def _compare(report: Report, testbed: Testbed, name: str, outputs: NDArray[np.float32]) -> None:
    base = testbed.notes / "unet.npy"
    report.check("finite", bool(np.isfinite(outputs).all()))
    different = relative(outputs[0], outputs[1])
    report.check("other inputs give another output", different > 0.1, f"{different:.2g}")
    if name == next(iter(VARIANTS)):
        np.save(base, outputs)
        return
    if not base.exists():
        report.check("held against the first variant", False, "which did not run")
        return
    ceiling = float(read_bundle(testbed.folder / "sd").parity["unet"]["ceiling"])
    error = relative(outputs, np.load(base))
    report.figures["relative_error"] = float(f"{error:.3e}")
    report.check("the first variant's values", error <= ceiling, f"{error:.1e} (relative), at most {ceiling:g}")
