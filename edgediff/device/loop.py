"""The device loop runs a plan's rows around U-Net calls on one CUDA stream, without the host in between.

State, history and the model's input and output stay in GPU memory. One captured graph of {U-Net, update} is launched a
step; the update reads its row by a counter on the device, so the same graph serves every step and every later run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..checks import is_whole
from ..errors import ArgumentError, EngineError, choices
from ..sampling.kernel_layout import MAX_HISTORY, packed
from ..sampling.planning import Plan
from ..sampling.rng import Generator
from ..sampling.update import Row
from .array import BYTES, FLOAT_TYPES, DeviceArray
from .base import Device
from .fused_update import HALVES, FusedUpdate
from .graphs import StepGraphs, Tensors
from .memory import DeviceMemory
from .model import Model
from .noise import draw_noise


class DeviceStep:
    """A device step is what one U-Net call made, as ``LoopStep``; values come to the host when they are asked for.

    One is made a step, so it costs little: it is no dataclass, and has no dictionary until it is settled.

    Args:
        row, index: the row that was enqueued, and its number.
        loop: whose.
        version: of the loop's state.
    """

    __slots__ = ("_settled", "index", "loop", "row", "version")

    def __init__(self, row: Row, index: int, loop: DeviceLoop, version: int) -> None:
        self.row, self.index, self.loop, self.version = row, index, loop, version
        self._settled: dict[str, Float32] | None = None

    @property
    def live(self) -> bool:
        """Whether the device still holds this step's values."""
        return self.version == self.loop.update.version

    def settle(self) -> None:
        """Bring the values to the host for good, before the loop goes on. Waits for the device; errors as ``after``."""
        names = ("x", "x0") if self.loop.previews else ("x",)
        self._settled = {name: self._value(name) for name in names}

    @property
    def after(self) -> Float32:
        """The state after this step, (B, C, h, w). Waits for the device.

        Raises:
            EngineError: it is not finite.
            ArgumentError: the loop has gone on since.
        """
        return self._value("x")

    def x0(self) -> Float32:
        """The x0 estimate of this step, (B, C, h, w). Waits for the device; errors as ``after``."""
        return self._value("x0")

    def _value(self, name: str) -> Float32:
        settled = self._settled
        return settled[name] if settled is not None and name in settled else self.loop.update.fetch(name, self.version)


@dataclass
class DeviceLoop:
    """A device loop holds buffers and graphs for one shape of latents, and runs one plan at a time.

    Args:
        device: where; it must outlive the loop.
        model: the U-Net.
        shape: of the state, (B, C, h, w).
        channels: that the model reads, at least C; what lies beyond C is the caller's to fill (``sample``).
        rows, depth: room for plans: U-Net calls, and values of history.
        sample_type, output_type, timestep_type: of the model's tensors.
        previews: whether to keep the x0 estimate of the last step.
        emulated: on the host, walk the grid of a GPU with so many multiprocessors; 0 walks none.

    Raises:
        ArgumentError: a shape, type or number out of range.
        EngineError: no kernels, no memory.
    """

    device: Device
    model: Model
    shape: tuple[int, int, int, int]
    channels: int | None = None
    rows: int = 256
    depth: int = 4
    sample_type: str = "float32"
    output_type: str = "float32"
    timestep_type: str = "float32"
    previews: bool = True
    emulated: int = 0
    memory: DeviceMemory = field(init=False, repr=False)  # lives as long as the loop
    sample: DeviceArray = field(init=False, repr=False)  # the model's tensors, with room for both halves
    output: DeviceArray = field(init=False, repr=False)
    timestep: DeviceArray = field(init=False, repr=False)
    update: FusedUpdate = field(init=False, repr=False)
    graphs: StepGraphs = field(init=False, repr=False)

    def __post_init__(self) -> None:
        channels = self._checked_channels()
        batch, own, height, width = (int(v) for v in self.shape)
        self.shape = batch, own, height, width
        self.memory = DeviceMemory(self.device)
        try:
            self._reserve(channels)
        except BaseException:
            with suppress(EngineError):  # the first one says what is wrong
                self.memory.close()
            raise

    def _checked_channels(self) -> int:
        """The model's channels, where every argument is in range."""
        if len(self.shape) != 4 or not all(is_whole(v, 1) for v in self.shape):
            raise ArgumentError(f"shape is {self.shape}; it must be (B, C, h, w), each at least 1")
        own = self.shape[1]
        channels = own if self.channels is None else self.channels
        if channels < own:
            raise ArgumentError(f"channels is {channels}; the state alone has {own}")
        for name, allowed in (
            ("sample_type", FLOAT_TYPES),
            ("output_type", FLOAT_TYPES),
            ("timestep_type", tuple(BYTES)),
        ):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name} is {getattr(self, name)!r}; choose from {choices(allowed)}")
        if not 0 <= self.depth <= MAX_HISTORY:
            raise ArgumentError(f"depth is {self.depth}; the kernels hold a history of 0 .. {MAX_HISTORY}")
        if self.rows < 1:
            raise ArgumentError(f"rows is {self.rows}; it must be at least 1")
        return int(channels)

    def _reserve(self, channels: int) -> None:
        batch, own, height, width = self.shape
        most = HALVES * batch
        tensors = (
            self.memory.array("input", (most, channels, height, width), self.sample_type),
            self.memory.array("output", (most, own, height, width), self.output_type),
            self.memory.array("timestep", (most,), self.timestep_type),
        )
        self.sample, self.output, self.timestep = tensors
        self.update = FusedUpdate(
            self.memory, self.shape, *tensors, self.rows, self.depth, self.previews, self.emulated
        )
        halves = {guided: self._first(batch * (HALVES if guided else 1)) for guided in (False, True)}
        self.graphs = StepGraphs(self.device, self.model, halves, self.update)

    def _first(self, batch: int) -> Tensors:
        """The model's tensors for the first ``batch`` of their room."""
        sample, timestep, output = (
            DeviceArray(a.address, (batch, *a.shape[1:]), a.dtype) for a in (self.sample, self.timestep, self.output)
        )
        return sample, timestep, output

    def run(
        self, plan: Plan, streams: Sequence[Generator], x: Float32 | None = None, ahead: int | None = None
    ) -> Iterator[DeviceStep]:
        """Enqueue the rows and yield after each; closing the iterator cancels what is not enqueued. Arguments are
        checked before this returns.

        Args:
            plan: the table.
            streams: one generator an image. torch-cuda noise is drawn on the device; that of others is drawn at the
                start, and copied.
            x: the first state of deviation 1, (B, C, h, w); drawn from ``streams`` when None.
            ahead: how many steps the host may be ahead of the device; None for any number, so that nothing waits
                before the end (but the few calls that prove a graph). With 1 or 2, a step is yielded when the device
                has nearly reached it, so that progress is true and cancelling saves work.

        Raises:
            ArgumentError: a plan beyond the loop's room, values of another shape.
            EngineError: the device failed.
        """
        table = self._packed_rows(plan, streams, x, ahead)
        with self.device.lock:
            return self._steps(plan, table, streams, x, ahead, self.update.renew())  # steps of earlier runs are void

    def _packed_rows(
        self, plan: Plan, streams: Sequence[Generator], x: Float32 | None, ahead: int | None
    ) -> NDArray[Any]:
        """The rows as the kernels read them, where every argument of ``run`` fits this loop."""
        for name, needed, room in (("rows", len(plan.rows), self.rows), ("history", plan.depth, self.depth)):
            if needed > room:
                raise ArgumentError(f"the plan has {needed} {name}; this loop has room for {room}")
        if len(streams) != self.shape[0]:
            raise ArgumentError(f"{self.shape[0]} images need as many generators; {len(streams)} were given")
        if x is not None and (x.shape != self.shape or x.dtype != np.float32):
            raise ArgumentError(f"x is {x.dtype}{list(x.shape)}; this loop needs float32{list(self.shape)}")
        if ahead is not None and not is_whole(ahead, 1):
            raise ArgumentError(f"ahead is {ahead!r}; it must be a whole number of at least 1, or None")
        return packed(plan)

    def _steps(
        self,
        plan: Plan,
        table: NDArray[Any],
        streams: Sequence[Generator],
        x: Float32 | None,
        ahead: int | None,
        version: int,
    ) -> Iterator[DeviceStep]:
        marks: list[Any] = []
        for k, row in enumerate(plan.rows):
            if ahead is not None and len(marks) >= ahead:
                self.device.wait(marks.pop(0))
            with self.device.lock:  # a stream that captures must hold nobody else's work
                if version != self.update.version:
                    raise ArgumentError("another run of this loop has begun; make a loop for each that runs at a time")
                version = self.update.renew()
                if k == 0:
                    self.update.load(plan, table, draw_noise(plan, table, streams, self.shape, x))
                self.graphs.step(row.guided)
                if ahead is not None:
                    marks.append(self.device.mark())
            yield DeviceStep(row, k, self, version)

    def close(self) -> None:
        """Give the memory back; the loop, and pictures made of it, are of no use afterwards."""
        self.update.renew()  # the values are gone
        self.graphs.clear()
        self.memory.close()
