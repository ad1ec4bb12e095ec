"""TensorRT tells the phases of a build, which lie inside each other; here they become one share of the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt

Say = Callable[..., None]
EVERY = 0.1  # seconds between two lines of progress


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


def monitor_of(say: Say) -> trt.IProgressMonitor:
    """Return a monitor that says the share of the work done and the innermost phase, ten times a second at most."""
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
