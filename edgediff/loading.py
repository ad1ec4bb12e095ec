"""A bundle and how it shall run, checked, become a pipeline: ``load()``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .bundle.manifest import Bundle
from .bundle.reading import read_bundle
from .checks import file_path, positive
from .device.base import Device
from .engines.base import EngineOptions, Provider, check_device
from .engines.choose import check_engine, check_foreign
from .engines.isolation.limits import Limits, held
from .engines.own_graphs import check_own_graphs
from .engines.providers import check_providers
from .errors import ArgumentError, shown, warn_caller
from .pipeline import Pipeline

if TYPE_CHECKING:
    from .engines.isolation.backend import Isolation
    from .engines.tensorrt.options import BuildOptions

MAX_THREADS = 256


def load(
    path: str | Path | None = None,
    *,
    device: str = "cpu",
    engine: str | None = None,
    threads: int | None = None,
    providers: Sequence[Provider] | None = None,
    engine_cache: str | Path | None = None,
    build_options: BuildOptions | None = None,
    release_parts: bool = False,
    memory_limit: int | None = None,
    isolated: bool | Limits = False,
    cuda_graphs: bool = True,
) -> Pipeline:
    """Open a bundle (the built-in emoji model when ``path`` is None). Engines open on first use, or by ``warm()``.

    Args:
        path: a bundle's folder, or a folder of ONNX graphs that optimum or Olive wrote.
        device: cpu, cuda, or cuda:N. On CUDA the U-Net's loop stays on the GPU, but for guidance that is not linear and
            for batches with texts of several lengths.
        engine: onnx (ONNX Runtime), tensorrt (engine files that were built before, by ``edgediff build``), or auto:
            those that are missing are built in the background while ONNX Runtime serves, and take over between calls
            (``pipe.build`` tells how far that is). None: an engine file where there is one, else ONNX Runtime.
        threads: CPU threads an engine may use; all physical cores when None.
        providers: ONNX Runtime's execution providers, by name or as (name, options), in place of the device's own, for
            example ``[("OpenVINOExecutionProvider", {"device_type": "GPU"})]``.
        engine_cache: the folder of TensorRT engine files; ``$EDGEDIFF_CACHE`` or the user's cache folder when None.
        build_options: how auto builds engine files.
        release_parts: hold one part in memory at a time: each is opened when it is called, and let go when the next
            one is. A picture takes longer by the time of opening, and no more memory than its largest part.
        memory_limit: bytes. Calls that are predicted to take more are refused before they begin; those that cannot fit
            in what is free are refused without it, too. The prediction is a lower bound, and no cap.
        isolated: run the native libraries that read the bundle (ONNX Runtime, tokenizers) in a child process with
            limits, without network and other files; for bundles of strangers, on Linux's CPUs. Pictures are the same.
            True: with the limits of ``Limits()``. ``pipe.isolation`` tells what is held back on this system.
        cuda_graphs: on a GPU, capture the work of a step and launch it as one graph: of TensorRT after its first call,
            of ONNX Runtime where two checks find that such a graph gives what calls give. False captures nothing.

    Warns:
        RuntimeWarning: this system lacks some of the means to isolate; the message names what is not held back.

    Raises:
        BundleError: the manifest is missing or malformed; another exporter's folder that cannot be run.
        ArgumentError: an unknown device or engine, threads outside 1 .. 256, providers of another form, a
            memory_limit below 1, options that exclude each other.
        EngineError: a CUDA device that cannot be used; another exporter's graph with operators that nothing here
            runs. The message says why.
    """
    ordinal = check_device(device)
    check_engine(engine, ordinal)
    check_providers(providers)
    if providers is not None and engine not in (None, "onnx"):
        raise ArgumentError(f"providers are ONNX Runtime's, and engine is {engine!r}; give one of them")
    if threads is not None and positive("threads", threads) > MAX_THREADS:
        raise ArgumentError(f"threads is {shown(threads)}; it must be at most {MAX_THREADS}")
    for name, value in (("path", path), ("engine_cache", engine_cache)):
        if value is not None:
            file_path(name, value)
    if not isinstance(release_parts, bool):
        raise ArgumentError(f"release_parts is {shown(release_parts)}; it must be True or False")
    if release_parts and ordinal is not None:
        raise ArgumentError(f"release_parts is for device 'cpu'; device is {device!r}, which keeps what it loops over")
    if not isinstance(cuda_graphs, bool):
        raise ArgumentError(f"cuda_graphs is {shown(cuda_graphs)}; it must be True or False")
    check_own_graphs(providers, ordinal, cuda_graphs)
    if build_options is not None:
        from .engines.tensorrt.options import BuildOptions

        if not isinstance(build_options, BuildOptions):
            raise ArgumentError(f"build_options is {shown(build_options)}; it must be a BuildOptions")
    if memory_limit is not None:
        memory_limit = positive("memory_limit", memory_limit)
    if not isinstance(isolated, (bool, Limits)):
        raise ArgumentError(f"isolated is {shown(isolated)}; it must be True, False or Limits(memory=..., seconds=...)")
    if isolated and (ordinal is not None or providers is not None):
        other = f"device is {device!r}" if ordinal is not None else f"providers is {shown(providers)}"
        raise ArgumentError(f"isolated is for the CPU's own kernels (device 'cpu', no providers); {other}")
    bundle = read_bundle(path)
    isolation = isolate(bundle, isolated) if isolated else None
    cache = None if engine_cache is None else Path(engine_cache)
    options = EngineOptions(threads, providers, engine, cache, release_parts, memory_limit, isolation, cuda_graphs)
    check_foreign(bundle, options, ordinal)
    pipe = Pipeline(bundle, options, None if ordinal is None else open_device(ordinal, cache), isolation)
    if engine == "auto":
        pipe.build_engines(build_options)
    return pipe


def open_device(ordinal: int, cache: Path | None) -> Device:
    """A CUDA device; what it is made of is imported here, since a CPU needs none of it."""
    from .device.cuda import CudaDevice

    return CudaDevice(ordinal, cache)


def isolate(bundle: Bundle, isolated: Literal[True] | Limits) -> Isolation:
    """A backend that runs a bundle's parts in a child; what cannot be held back here is warned of."""
    held(Limits(), 0)  # refuses where nothing can be isolated, before what only Unix has is imported
    from .engines.isolation.backend import Isolation

    isolation = Isolation(bundle, Limits() if isolated is True else isolated)
    if lacks := isolation.held.lacks:
        warn_caller(
            f"an isolated bundle is not kept from everything here; not held back: {'; '.join(lacks)}", RuntimeWarning
        )
    return isolation
