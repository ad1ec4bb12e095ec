"""The builder builds one engine file, in a process of its own, which reads its order from stdin.

It tells its progress in JSON lines on stdout, and ends itself when stdin is closed. TensorRT's own words go to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import read_regular
from .options import BuildOptions, read_options

if TYPE_CHECKING:
    import tensorrt as trt

Say = Callable[..., None]
EVERY = 0.1  # seconds between two lines of progress
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


@dataclass
class Phases:
    """Phases that lie inside each other tell the share of the work done."""

    _open: list[tuple[str, int, int]] = field(default_factory=list)  # name, steps, steps done

    def start(self, name: str, steps: int) -> None:
        self._open.append((name, max(1, steps), 0))

    def step(self, name: str, step: int) -> None:
        """Step ``step``, from 0, of that phase is done."""
        for k, (other, steps, _) in enumerate(self._open):
            if other == name:
                self._open[k] = (name, steps, min(step + 1, steps))

    def finish(self, name: str) -> None:
        self._open = [phase for phase in self._open if phase[0] != name]

    @property
    def share(self) -> float:
        """Return the share of the work done, 0 .. 1."""
        share, width = 0.0, 1.0
        for _, steps, done in self._open:
            width /= steps
            share += width * min(done, steps)
        return min(share, 1.0)

    @property
    def name(self) -> str:
        """Return the innermost phase's name."""
        return self._open[-1][0] if self._open else ""


def build(order: BuildOrder, say: Say) -> None:
    """Build the engine and write its file. Raises ``BuildFailed``."""
    import tensorrt as trt

    log = _log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(order.graph):
        errors = [parser.get_error(k) for k in range(parser.num_errors)]
        reasons = "; ".join(f"{e.node_name() or 'graph'}: {' '.join(e.desc().split())}" for e in errors[:ERRORS])
        raise BuildFailed(f"TensorRT {trt.__version__} cannot read {Path(order.graph).name}: {reasons or _last(log)}")
    config = _configured(order, builder, network)
    timing = _timing(order, config)
    config.progress_monitor = monitor = _monitor(say)
    engine: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildFailed(f"TensorRT {trt.__version__} made no engine: {_last(log)}")
    with open(order.engine, "wb") as f:
        f.write(engine)
    if order.timing is not None and timing is not None:
        _keep(Path(order.timing), timing.serialize(), Path(order.engine).with_name("timing"))
    del monitor  # the builder does not keep it alive
    say("done", tensorrt=trt.__version__, size=os.path.getsize(order.engine))


def _configured(order: BuildOrder, builder: trt.Builder, network: trt.INetworkDefinition) -> trt.IBuilderConfig:
    import tensorrt as trt

    config, options = builder.create_builder_config(), order.options
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
    profile = builder.create_optimization_profile()
    names = {network.get_input(k).name for k in range(network.num_inputs)}
    if names != set(order.profile):
        raise BuildFailed(f"the graph has inputs {sorted(names)}, the profile is of {sorted(order.profile)}")
    for name, (least, best, most) in order.profile.items():
        profile.set_shape(name, trt.Dims(least), trt.Dims(best), trt.Dims(most))
    config.add_optimization_profile(profile)
    return config


def _timing(order: BuildOrder, config: trt.IBuilderConfig) -> trt.ITimingCache | None:
    """Return timings of earlier builds; none where they cannot be read."""
    if order.timing is None:
        return None
    known = b""
    with contextlib.suppress(OSError):
        known = read_regular(order.timing, TIMING_LIMIT)
    for data in (known, b""):  # what another TensorRT wrote is refused
        cache: trt.ITimingCache | None = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _keep(path: Path, timing: trt.IHostMemory, new: Path) -> None:
    """Write timings whole or not at all, by way of a file that goes with the build's folder."""
    with contextlib.suppress(OSError):
        new.write_bytes(timing)
        new.replace(path)


def _log() -> trt.ILogger:
    import tensorrt as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(msg.split()))
                print(msg, file=sys.stderr, flush=True)

    return Log()


def _last(log: Any) -> str:
    return "; ".join(log.errors[-ERRORS:]) or "it does not say why"


def _monitor(say: Say) -> trt.IProgressMonitor:
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases, self._reported, self._lock = Phases(), 0.0, threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                self._phases.step(phase_name, step)
                if time.monotonic() - self._reported >= EVERY:
                    self._reported = time.monotonic()
                    say("progress", share=round(self._phases.share, 4), phase=self._phases.name)
            return True  # go on; a cancelled build is killed

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.finish(phase_name)

    return Monitor()


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
