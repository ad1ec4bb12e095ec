"""The device loop: a plan's rows around U-Net calls on one CUDA stream, without the host in between.

State, history and the model's input and output stay in GPU memory. One captured graph of {U-Net, update} is launched a
step; the update reads its row by a counter on the device, so the same graph serves every step and every later run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import ArgumentError, EngineError, choices
from ..sampling.kernels import HEADER, MAX_HISTORY, ROW, packed, require_package
from ..sampling.planning import Plan
from ..sampling.rng import Generator, TorchCudaGenerator
from ..sampling.update import Row
from .base import BYTES, Device, DeviceArray

FLOAT_TYPES = ("float32", "float16", "bfloat16")
HALVES = 2  # halves of the model's batch


class Model(Protocol):
    """A U-Net that can enqueue itself on a stream. Its conditions (texts, sizes) are its own business."""

    capturable: bool  # whether its work may be part of a graph; TensorRT's may, ONNX Runtime captures its own

    @property
    def key(self) -> Hashable:
        """What a captured graph of it depends on besides the batch: addresses and shapes of its other inputs."""

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        """Enqueue one call that reads ``sample`` (N, C', h, w) and ``timestep`` (N,) and writes ``output``
        (N, C, h, w); the unconditional half first. Must not wait for the device.
        """


@dataclass(frozen=True)
class DeviceStep:
    """What one U-Net call made, as ``loop.LoopStep``; values come to the host when they are asked for."""

    row: Row
    index: int
    loop: DeviceLoop
    turn: int
    _settled: dict[str, Float32] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether the device still holds this step's values."""
        return self.turn == self.loop._turn

    def settle(self) -> None:
        """Bring the values to the host for good, before the loop goes on. Waits for the device; errors as ``after``."""
        for name in ("x", "x0") if self.loop.previews else ("x",):
            self._settled[name] = self.loop._fetch(name, self.turn)

    @property
    def after(self) -> Float32:
        """The state after this step, (B, C, h, w). Waits for the device.

        Raises:
            EngineError: it is not finite.
            ArgumentError: the loop has gone on since.
        """
        return self._settled["x"] if "x" in self._settled else self.loop._fetch("x", self.turn)

    def x0(self) -> Float32:
        """The x0 estimate of this step, (B, C, h, w). Waits for the device; errors as ``after``."""
        return self._settled["x0"] if "x0" in self._settled else self.loop._fetch("x0", self.turn)


@dataclass
class DeviceLoop:
    """Buffers and graphs for one shape of latents; runs one plan at a time.

    Args:
        device: where; it must outlive the loop.
        model: the U-Net.
        shape: of the state, (B, C, h, w).
        channels: that the model reads, at least C; what lies beyond C is the caller's to fill (``sample``).
        rows, depth: room for plans: U-Net calls, and values of history.
        sample_type, output_type, timestep_type: of the model's tensors.
        previews: whether to keep the x0 estimate of the last step.

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
    emulated: int = 0  # on the host: walk the grid of a GPU with so many multiprocessors
    _at: dict[str, int] = field(default_factory=dict)
    _memory: list[int] = field(default_factory=list)
    _graphs: dict[Hashable, Any] = field(default_factory=dict)
    _warm: set[Hashable] = field(default_factory=set)
    _turn: int = 0
    _header: NDArray[Any] = field(default_factory=lambda: np.zeros(1, HEADER))
    _noise: tuple[int, int] = (0, 0)
    _sampler: str = ""

    def __post_init__(self) -> None:
        kernels = require_package()
        whole = (int, np.integer)
        if len(self.shape) != 4 or not all(isinstance(v, whole) and v >= 1 for v in self.shape):
            raise ArgumentError(f"shape is {self.shape}; it must be (B, C, h, w), each at least 1")
        batch, own, height, width = (int(v) for v in self.shape)
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
        try:
            self._lay_out(kernels, batch, own, channels, height, width)
        except BaseException:
            with suppress(EngineError):  # the first one says what is wrong
                self.close()
            raise

    def _lay_out(self, kernels: Any, batch: int, own: int, channels: int, height: int, width: int) -> None:
        size, most = own * height * width, HALVES * batch
        self.sample = self._array((most, channels, height, width), self.sample_type)
        self.output = self._array((most, own, height, width), self.output_type)
        self.timestep = self._array((most,), self.timestep_type)
        sizes = {
            "header": HEADER.itemsize,
            "rows": self.rows * ROW.itemsize,
            "seeds": batch * 8,
            "x": batch * size * 4,
            "history": self.depth * batch * size * 4,
        }
        if self.previews:
            sizes["x0"] = batch * size * 4
        buffers = {name: (self._allocate(name, count), count) for name, count in sizes.items() if count}
        for name, array in (("input", self.sample), ("output", self.output), ("timestep", self.timestep)):
            buffers[name] = (array.address, array.nbytes)
        try:
            self._update = kernels.Update(
                device=self.device.ordinal,
                batch=batch,
                size=size,
                stride=channels * height * width,
                depth=self.depth,
                rows=self.rows,
                copies=HALVES,
                input=self.sample_type,
                output=self.output_type,
                timestep=self.timestep_type,
                buffers=buffers,
                emulated=self.emulated,
            )
        except ValueError as error:
            raise ArgumentError(str(error)) from error
        except kernels.CudaError as error:
            raise EngineError(str(error)) from error
        self._failure = kernels.CudaError
        self._bad = {kernels.BAD_OUTPUT: "unet", kernels.BAD_PIXELS: "vae_decoder"}
        self._not_bad = kernels.NOT_BAD

    @property
    def state(self) -> DeviceArray:
        """The state on the device, float32."""
        return DeviceArray(self._at["x"], self.shape, "float32")

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
                before the end. With 1 or 2, a step is yielded when the device has nearly reached it, so that progress
                is true and cancelling saves work.

        Raises:
            ArgumentError: a plan beyond the loop's room, values of another shape.
            EngineError: the device failed.
        """
        table = self._checked(plan, streams, x, ahead)
        with self.device.lock:
            self._turn += 1  # steps of earlier runs are void
            return self._run(plan, table, streams, x, ahead, self._turn)

    def _checked(self, plan: Plan, streams: Sequence[Generator], x: Float32 | None, ahead: int | None) -> NDArray[Any]:
        for name, needed, room in (("rows", len(plan.rows), self.rows), ("history", plan.depth, self.depth)):
            if needed > room:
                raise ArgumentError(f"the plan has {needed} {name}; this loop has room for {room}")
        if len(streams) != self.shape[0]:
            raise ArgumentError(f"{self.shape[0]} images need as many generators; {len(streams)} were given")
        if x is not None and (x.shape != self.shape or x.dtype != np.float32):
            raise ArgumentError(f"x is {x.dtype}{list(x.shape)}; this loop needs float32{list(self.shape)}")
        if ahead is not None and (isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 1):
            raise ArgumentError(f"ahead is {ahead!r}; it must be a whole number of at least 1, or None")
        return packed(plan)

    def _run(
        self,
        plan: Plan,
        table: NDArray[Any],
        streams: Sequence[Generator],
        x: Float32 | None,
        ahead: int | None,
        turn: int,
    ) -> Iterator[DeviceStep]:
        marks: list[Any] = []
        for k, row in enumerate(plan.rows):
            if ahead is not None and len(marks) >= ahead:
                self.device.wait(marks.pop(0))
            with self.device.lock:  # a stream that captures must hold nobody else's work
                if self._turn != turn:
                    raise ArgumentError("another run of this loop has begun; make a loop for each that runs at a time")
                self._turn = turn = turn + 1
                if k == 0:
                    self._prepare(plan, table, streams, x)
                self._step(row.guided)
                if ahead is not None:
                    marks.append(self.device.mark())
            yield DeviceStep(row, k, self, turn)

    def _prepare(self, plan: Plan, table: NDArray[Any], streams: Sequence[Generator], x: Float32 | None) -> None:
        """Everything that a run changes, copied in front of it."""
        size = int(np.prod(self.shape[1:]))
        on_device = _on_device(streams, size)
        noise = 0
        if on_device is None:
            shape = (1, *self.shape[1:])
            draw: Callable[[], Float32] = lambda: np.concatenate([s.randn(shape) for s in streams])  # noqa: E731
            x = draw() if x is None else x
            if plan.stochastic:
                noise = self._upload_noise(np.stack([draw() for row in plan.rows if row.d]))
        else:
            generators, threads, first = on_device
            self.device.upload(self._at["seeds"], np.array([g.seed for g in generators], np.uint64))
            table["draw"] += first + (x is None)
            for generator in generators:
                generator.skip(size, int(np.count_nonzero(table["d"])) + (x is None))
        header = self._header
        header[:] = np.zeros(1, HEADER)
        header["steps"], header["depth"] = len(plan.rows), plan.depth
        header["copies"] = HALVES if plan.guided else 1
        header["bad_step"] = self._not_bad
        header["start"] = plan.start
        header["noise"] = noise
        if on_device is not None:
            header["threads"], header["drawn"] = threads, first + 1 if x is None else 0
        self._sampler = plan.sampler
        if x is not None:
            self.device.upload(self._at["x"], x)
        self.device.upload(self._at["rows"], table)
        self.device.upload(self._at["header"], header)
        self._launch(self._update.begin)

    def _step(self, guided: bool) -> None:
        """One U-Net call and its row: the captured graph, once the call has run outside of one."""
        key = (guided, self.model.key)
        if not self.model.capturable:
            self._enqueue(guided)
        elif key in self._graphs:
            self.device.launch(self._graphs[key])
        elif key in self._warm:
            self._graphs[key] = self.device.capture(lambda: self._enqueue(guided))
            self.device.launch(self._graphs[key])
        else:
            self._enqueue(guided)  # engines lay out memory at their first call, which cannot be captured
            self._warm.add(key)

    def _enqueue(self, guided: bool) -> None:
        batch = self.shape[0] * (HALVES if guided else 1)
        sample, timestep, output = (
            DeviceArray(a.address, (batch, *a.shape[1:]), a.dtype) for a in (self.sample, self.timestep, self.output)
        )
        self.model.enqueue(sample, timestep, output, self.device.stream)
        self._launch(self._update.step)

    def _launch(self, kernel: Callable[[int], None]) -> None:
        try:
            kernel(self.device.stream)
        except self._failure as error:
            raise EngineError(str(error)) from error

    def _fetch(self, name: str, turn: int) -> Float32:
        if name not in self._at:
            raise ArgumentError("this loop keeps no x0 estimates; make it with previews=True")
        out = np.empty(self.shape, np.float32)
        with self.device.lock:  # another thread may run the loop
            if turn != self._turn:
                raise ArgumentError("the loop has gone on since this step; ask a step for its values before the next")
            self.device.download(self._at[name], out)
            self.check()
        return out

    def check(self) -> None:
        """Wait for the device; ``EngineError`` naming the part whose values were not finite, and the step."""
        self.device.download(self._at["header"], self._header)
        what, step = int(self._header["bad_what"][0]), int(self._header["bad_step"][0])
        for bit, part in self._bad.items():
            if what & bit:
                at = f", step {step + 1}," if part == "unet" else ""
                raise EngineError(f"{part}{at} gave values that are not finite (NaN or infinity)")
        if what:
            raise EngineError(f"sampler {self._sampler}, step {step + 1}, gave values that are not finite")

    def close(self) -> None:
        """Give the memory back; the loop, and pictures made of it, are of no use afterwards."""
        self._turn += 1
        self._graphs.clear()
        while self._memory:
            self.device.free(self._memory.pop())

    def allocate(self, size: int) -> int:
        """Device memory that lives as long as the loop."""
        self._memory.append(self.device.allocate(size))
        return self._memory[-1]

    def _allocate(self, name: str, size: int) -> int:
        self._at[name] = self.allocate(size)
        return self._at[name]

    def _array(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        return DeviceArray(self.allocate(int(np.prod(shape)) * BYTES[dtype]), shape, dtype)

    def _upload_noise(self, values: Float32) -> int:
        address, room = self._noise
        if values.nbytes > room:
            if room:
                self._memory.remove(address)
                self._noise = 0, 0  # should allocating fail
                self.device.free(address)
            address = self.allocate(values.nbytes)
            self._noise = address, values.nbytes
        self.device.upload(address, values)
        return address


def _on_device(streams: Sequence[Generator], size: int) -> tuple[list[TorchCudaGenerator], int, int] | None:
    """Generators that the kernels can go on with, the threads of a draw of ``size``, and the draws made before."""
    generators = [s for s in streams if isinstance(s, TorchCudaGenerator)]
    places = {g.place(size) for g in generators}
    if len(generators) < len(streams) or len(places) > 1:
        return None
    threads, draws = places.pop()
    return None if draws is None else (generators, threads, draws)
