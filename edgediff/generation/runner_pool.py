"""Requests run on a device by runners, which a pool keeps from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from collections.abc import Generator as GeneratorType
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..arrays import Float32
from ..bundle.manifest import Bundle
from ..device.base import Device
from ..engines.base import StreamEngine
from ..engines.choose import Parts
from ..errors import EngineError
from ..sampling.planning import Plan
from ..sampling.rng import Generator
from .conditioning import Conditioning
from .request import Request

if TYPE_CHECKING:
    from ..device.loop import DeviceStep
    from .device_runner import DeviceRunner

PLAN_ROWS, PLAN_DEPTH = 256, 8  # room for plans; longer ones get a loop of their own
IDLE_RUNNERS = 2  # kept for the next request


class RunnerPool:
    """A pool lends runners, makes one when there is none, and keeps a few that are idle.

    The collector may close a generator, which gives its runner back, anywhere: in a thread that has the device's lock,
    or is in a method here. So the pool has no lock of its own; what it does to its list are single calls.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[Hashable, DeviceRunner]] = []
        self._room = IDLE_RUNNERS

    @contextmanager
    def borrow(self, key: Hashable, make: Callable[[], DeviceRunner]) -> Iterator[DeviceRunner]:
        """A runner for ``key`` alone; one that failed is not used again."""
        runner = self._take(key) or self._made(make)
        try:
            yield runner
        except EngineError:
            with suppress(EngineError):  # the first one says what is wrong
                runner.close()
            raise
        except BaseException:
            self._give_back(key, runner)
            raise
        self._give_back(key, runner)

    def _made(self, make: Callable[[], DeviceRunner]) -> DeviceRunner:
        try:
            return make()
        except EngineError:
            if not self.clear():
                raise
            return make()  # with the memory of those that were idle

    def clear(self) -> int:
        """Let go of those that are idle, and give their memory back to the system, where engines take theirs.

        Returns:
            How many there were.
        """
        idle = []
        while runner := self._oldest():
            runner.close()
            idle.append(runner)
        for device in {id(runner.device): runner.device for runner in idle}.values():
            device.trim()
        return len(idle)

    def close(self) -> None:
        """Keep none from now on, neither those that are idle nor those that come back. Raises ``EngineError``: the
        device failed.
        """
        self._room = 0
        self.clear()

    def _take(self, key: Hashable) -> DeviceRunner | None:
        for entry in tuple(self._idle):
            if entry[0] == key:
                with suppress(ValueError):  # taken or dropped meanwhile
                    self._idle.remove(entry)
                    return entry[1]
        return None

    def _oldest(self) -> DeviceRunner | None:
        """Take the one that has been idle longest."""
        try:
            return self._idle.pop(0)[1]
        except IndexError:
            return None

    def _give_back(self, key: Hashable, runner: DeviceRunner) -> None:
        self._idle.append((key, runner))
        while len(self._idle) > self._room and (old := self._oldest()):
            old.close()


def device_engine(
    request: Request, conditioning: Conditioning, parts: Parts, device: Device | None, sample: tuple[int, ...]
) -> StreamEngine | None:
    """The U-Net's engine, where the device loop can run the request by it: guidance in the rows, texts of one length,
    an engine that enqueues. ``sample`` is one image's shape, (C', h, w).
    """
    if device is None or request.combiner() is not None or conditioning.largest is None:
        return None
    engine: Any = parts.pick("unet", conditioning.largest.shapes(sample))
    return engine if hasattr(engine, "enqueue") else None


def run_on_device(
    plan: Plan,
    device: Device,
    unet: StreamEngine,
    bundle: Bundle,
    runners: RunnerPool,
    shape: tuple[int, int, int, int],
    streams: Sequence[Generator],
    x: Float32 | None,
    conditioning: Conditioning,
    extra: Float32 | None,
) -> GeneratorType[tuple[DeviceRunner, DeviceStep], None, None]:
    """Borrow a runner for the state's ``shape`` and yield after every row; the last step's values come to the host
    when the iterator goes on.
    """
    from .device_runner import DeviceRunner  # a CPU's calls need none of it

    assert conditioning.largest is not None
    room = max(PLAN_ROWS, 1 << (len(plan.rows) - 1).bit_length())

    def make() -> DeviceRunner:
        return DeviceRunner(device, bundle, unet, shape, room, PLAN_DEPTH)

    with runners.borrow((shape, room, id(unet)), make) as runner:
        for step in runner.run(plan, streams, x, conditioning.largest, extra):
            yield runner, step
        step.settle()
