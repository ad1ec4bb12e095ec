"""The builder builds one engine file, in a process of its own, which reads its order from stdin.

It tells its progress in JSON lines on stdout, and ends itself when stdin is closed. TensorRT's own words go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...files import read_regular
from .build_progress import Say, monitor_of
from .options import BuildOptions, read_options

if TYPE_CHECKING:
    import tensorrt as trt

Made = TypeVar("Made")
TIMING_LIMIT = 1 << 30  # bytes
ERRORS = 3  # of TensorRT's that are passed on


@dataclass(frozen=True)
class BuildOrder:
    """A build order says what the builder shall build."""

    graph: str
    engine: str  # where to write it
    profile: dict[str, list[list[int]]]  # of ``profiles.profile``
    options: BuildOptions = field(default_factory=BuildOptions)
    timing: str | None = None  # where timings of kernels are kept
    background: bool = False  # leave the processors to others


def read_order(text: str) -> BuildOrder:
    """Return the order again, from its JSON."""
    data = json.loads(text)
    return BuildOrder(**{**data, "options": read_options(data["options"])})


class BuildFailed(Exception):
    """TensorRT did not make an engine; the message says why."""


def build(order: BuildOrder, say: Say) -> None:
    """Build the engine and write its file. Raises ``BuildFailed``."""
    import tensorrt as trt

    errors: list[str] = []
    log = _log(errors)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # the bindings' word for a null pointer
        raise BuildFailed(f"TensorRT {trt.__version__} cannot start: {_last(errors)}") from error
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _made(builder.create_network(flags), "network", errors)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(order.graph):
        found = [parser.get_error(k) for k in range(min(parser.num_errors, ERRORS))]
        reasons = "; ".join(f"{e.node_name() or 'graph'}: {' '.join(e.desc().split())}" for e in found)
        raise BuildFailed(
            f"TensorRT {trt.__version__} cannot read {Path(order.graph).name}: {reasons or _last(errors)}"
        )
    errors.clear()  # what follows mostly tells of a refusal in the log alone
    config = _configured(order, builder, network, errors)
    if errors:
        raise BuildFailed(f"TensorRT {trt.__version__} refuses the options of this build: {_last(errors)}")
    timed = _timed(order, config)
    config.progress_monitor = monitor = monitor_of(say)
    engine: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildFailed(f"TensorRT {trt.__version__} made no engine: {_last(errors)}")
    with open(order.engine, "wb") as f:
        f.write(engine)
    if order.timing is not None and timed:
        _keep(Path(order.timing), config.get_timing_cache(), Path(order.engine).with_name("timing"))
    del monitor  # the builder does not keep it alive
    say("done", tensorrt=trt.__version__, size=os.path.getsize(order.engine))


def _configured(
    order: BuildOrder, builder: trt.Builder, network: trt.INetworkDefinition, errors: list[str]
) -> trt.IBuilderConfig:
    import tensorrt as trt

    config, options = _made(builder.create_builder_config(), "configuration", errors), order.options
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # the same weights come back; REFIT costs fusions
    if options.hardware == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.hardware == "same_compute_capability":
        if not hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"):  # not in 10.3
            raise BuildFailed(f"TensorRT {trt.__version__} does not know hardware compatibility {options.hardware!r}")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    profile = _made(builder.create_optimization_profile(), "profile", errors)
    names = {network.get_input(k).name for k in range(network.num_inputs)}
    if names != set(order.profile):
        raise BuildFailed(f"the graph has inputs {sorted(names)}, the profile is of {sorted(order.profile)}")
    for name, (least, best, most) in order.profile.items():
        profile.set_shape(name, trt.Dims(least), trt.Dims(best), trt.Dims(most))
    if config.add_optimization_profile(profile) < 0:
        raise BuildFailed(f"TensorRT {trt.__version__} refuses the profile {order.profile}: {_last(errors)}")
    return config


def _made(thing: Made | None, what: str, errors: list[str]) -> Made:
    """Return what TensorRT made, where it made anything: its bindings give None for a null pointer."""
    if thing is None:
        raise BuildFailed(f"TensorRT cannot make a {what}: {_last(errors)}")
    return thing


def _timed(order: BuildOrder, config: trt.IBuilderConfig) -> bool:
    """Take the timings of earlier builds, or none where they cannot be read; tell whether any are kept at all."""
    if order.timing is None:
        return False
    known = b""
    with contextlib.suppress(OSError):
        known = read_regular(order.timing, TIMING_LIMIT)
    for data in (known, b""):  # what another TensorRT wrote is refused
        cache: trt.ITimingCache | None = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
    return False


def _keep(path: Path, timing: trt.ITimingCache | None, new: Path) -> None:
    """Write timings whole or not at all, by way of a file that goes with the build's folder.

    Args:
        timing: the configuration's own after the build: the one given to it need not hold what was measured since.
    """
    serialized: trt.IHostMemory | None = None if timing is None else timing.serialize()
    if serialized is None:
        return
    with contextlib.suppress(OSError):
        new.write_bytes(serialized)
        new.replace(path)


def _log(errors: list[str]) -> trt.ILogger:
    """Return a log that prints errors to stderr and keeps them."""
    import tensorrt as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                errors.append(" ".join(msg.split()))
                print(msg, file=sys.stderr, flush=True)

    return Log()


def _last(errors: list[str]) -> str:
    return "; ".join(errors[-ERRORS:]) or "it does not say why"


def main() -> int:
    """Read an order and build. Exit codes: 0 done, 1 failed and told why."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like ours
    lock = threading.Lock()

    def say(event: str, **facts: Any) -> None:
        with lock:
            lines.write(json.dumps({"event": event, **facts}) + "\n")
            lines.flush()

    order = read_order(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if order.background and hasattr(os, "nice"):
        os.nice(10)
    try:
        build(order, say)
    except (BuildFailed, OSError, MemoryError) as error:
        say("failed", reason=str(error) or type(error).__name__)
        return 1
    except Exception as error:
        say("failed", reason=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(3)  # nobody waits for the engine file any more


if __name__ == "__main__":
    sys.exit(main())
