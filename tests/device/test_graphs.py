"""Step graphs: when a step is captured, what a graph must show before it is trusted, and what a failure leaves.

A graph of the host's device is the work itself, done again. Doubles make it fail, or give what a graph must not.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgediff.device.array import DeviceArray
from edgediff.device.graphs import CHANGE, MAX_KEYS, TOLERANCE, difference
from edgediff.device.loop import DeviceLoop, DeviceStep
from edgediff.device.model import Capture
from edgediff.errors import EngineError, EngineWarning
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCpuGenerator
from edgediff.sampling.schedule import Schedule

from ..support.host_device import CountingDevice, view

pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

SHAPE = (2, 4, 6, 5)
TABLE = plan(Schedule(), "dpmpp_2m", 12, 7.5)


class Net:
    """A model of the host's memory, whose graphs may give other values than its calls: ``replayed`` changes them."""

    key: Any = 0

    def __init__(self, capture: Capture, replayed: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> None:
        self.capture, self.warm_runs, self.replayed = capture, 3 if capture == "proven" else 1, replayed
        self.device = GraphDevice()

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        values = np.tanh(0.4 * view(sample) + 0.001 * view(timestep)[0])
        view(output)[:] = self.replayed(values) if self.device.launching else values


class GraphDevice(CountingDevice):
    """It tells whether a graph is at work, and fails in the captures and launches whose numbers it is given."""

    broken: tuple[int, ...] = ()
    broken_launches: tuple[int, ...] = ()
    before: Callable[[], None] = staticmethod(lambda: None)

    @property
    def launching(self) -> bool:
        return self._launching

    def capture(self, work: Callable[[], None]) -> Any:
        self.before()
        graph = super().capture(work)
        if self.calls["capture"] in self.broken:
            raise EngineError("capturing a CUDA graph: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        return graph

    def launch(self, graph: Any) -> None:
        if self.calls["launch"] + 1 in self.broken_launches:
            self.calls["launch"] += 1
            raise EngineError("launching a CUDA graph: CUDA_ERROR_OUT_OF_MEMORY")
        super().launch(graph)


def made(net: Net, loop: DeviceLoop | None = None) -> np.ndarray:
    loop = DeviceLoop(net.device, net, SHAPE) if loop is None else loop
    *_, last = loop.run(TABLE, [TorchCpuGenerator(5), TorchCpuGenerator(77)])
    return last.after


@pytest.fixture(scope="module")
def wanted() -> np.ndarray:
    return made(Net("never"))


def quietly(net: Net, loop: DeviceLoop | None = None) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return made(net, loop)


def test_calls_before_a_graph_and_waits(wanted: np.ndarray) -> None:
    """Four numbers say what each kind of model costs in a run of 12 steps."""
    for capture, expected in (("never", (0, 0, 0)), ("always", (1, 11, 0)), ("proven", (2, 9, 4))):
        net = Net(capture)  # type: ignore[arg-type]
        loop = DeviceLoop(net.device, net, SHAPE)
        np.testing.assert_array_equal(quietly(net, loop), wanted)
        calls = net.device.calls
        downloads = calls["download"] - 2  # the state, and whether it is finite
        assert (calls["capture"], calls["launch"], downloads) == expected
        assert list(loop.graphs.states.values()) == ([] if capture == "never" else ["captured"])
        calls.clear()
        np.testing.assert_array_equal(quietly(net, loop), wanted)
        assert calls["launch"] == (0 if capture == "never" else 12)
        assert calls["capture"] == 0


def test_a_graph_is_not_trusted_before_two_inputs() -> None:
    net = Net("proven")
    loop = DeviceLoop(net.device, net, SHAPE)
    seen = []
    for _ in loop.run(TABLE, [TorchCpuGenerator(5), TorchCpuGenerator(77)]):
        seen += loop.graphs.states.values()
    assert seen == ["warming"] * 2 + ["checking"] * 3 + ["captured"] * 7


@pytest.mark.parametrize("capture", ["always", "proven"])
def test_a_capture_that_fails_once_is_tried_again(capture: Capture, wanted: np.ndarray) -> None:
    net = Net(capture)
    net.device.broken = (1,)
    loop = DeviceLoop(net.device, net, SHAPE)
    np.testing.assert_array_equal(quietly(net, loop), wanted)
    assert list(loop.graphs.states.values()) == ["captured"]


@pytest.mark.parametrize(("launch", "captures"), [(1, 3), (2, 3), (3, 3)], ids=["checked", "checked twice", "trusted"])
def test_a_graph_that_cannot_be_launched_is_captured_again(launch: int, captures: int, wanted: np.ndarray) -> None:
    net = Net("proven")
    net.device.broken_launches = (launch,)
    loop = DeviceLoop(net.device, net, SHAPE)
    np.testing.assert_array_equal(quietly(net, loop), wanted)
    assert list(loop.graphs.states.values()) == ["captured"]
    assert net.device.calls["capture"] == captures


@pytest.mark.parametrize("broken", [(1, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("capture", ["always", "proven"])
def test_captures_that_fail_leave_the_calls(capture: Capture, broken: tuple[int, ...], wanted: np.ndarray) -> None:
    """Said once, with the part and CUDA's reason, at the line of the program that runs the loop."""
    net = Net(capture)
    net.device.broken = (1, 2) if capture == "always" else broken
    loop = DeviceLoop(net.device, net, SHAPE)
    with pytest.warns(EngineWarning) as said:
        np.testing.assert_array_equal(made(net, loop), wanted)
    assert [w.filename for w in said] == [__file__]
    assert str(said[0].message).startswith("unet runs without CUDA graphs: capturing a CUDA graph: CUDA_ERROR_STREAM")
    assert list(loop.graphs.states.values()) == ["eager"]
    captures = net.device.calls["capture"]
    net.key = 1  # other conditions are tried again, and not said again
    net.device.broken = tuple(range(100))
    np.testing.assert_array_equal(quietly(net, loop), wanted)
    assert net.device.calls["capture"] == captures + 2
    net.key = 0
    np.testing.assert_array_equal(quietly(net, loop), wanted)
    assert net.device.calls["capture"] == captures + 2


def stale() -> Callable[[np.ndarray], np.ndarray]:
    """Give the answer to the first input again, as a graph that holds it does."""
    first: list[np.ndarray] = []

    def replayed(values: np.ndarray) -> np.ndarray:
        first.append(values)
        return first[0]

    return replayed


@pytest.mark.parametrize(
    ("replayed", "reason"),
    [
        (stale(), r"gave other values than the call itself \(relative error 0\.\d+\)"),
        (lambda values: np.nan * values, r"gave other values than the call itself \(relative error inf\)"),
        (lambda values: np.where(values > 0.99, np.inf, values), r"relative error inf"),
        (lambda values: values * np.float32(1 + 2 * TOLERANCE), r"relative error 0\.002\)"),
    ],
    ids=["stale", "nan", "inf", "off"],
)
def test_a_graph_that_gives_other_values_is_not_used(replayed: Any, reason: str, wanted: np.ndarray) -> None:
    net = Net("proven", replayed)
    loop = DeviceLoop(net.device, net, SHAPE)
    with pytest.warns(EngineWarning, match=reason):
        np.testing.assert_array_equal(made(net, loop), wanted)
    np.testing.assert_array_equal(quietly(net, loop), wanted)
    assert list(loop.graphs.states.values()) == ["eager"]


def test_a_graph_that_writes_nothing_is_not_used(wanted: np.ndarray) -> None:
    net = Net("proven")
    enqueue = net.enqueue

    def idle(*arguments: Any) -> None:
        if not net.device.launching:
            enqueue(*arguments)

    net.enqueue = idle  # type: ignore[method-assign]
    with pytest.warns(EngineWarning, match="relative error inf"):
        np.testing.assert_array_equal(made(net), wanted)


def test_rounding_is_no_difference() -> None:
    net = Net("proven", lambda values: values * np.float32(1 + TOLERANCE / 4))
    loop = DeviceLoop(net.device, net, SHAPE)
    quietly(net, loop)
    assert list(loop.graphs.states.values()) == ["captured"]


def test_a_second_input_that_changes_nothing_proves_nothing() -> None:
    net = Net("proven")

    def constant(sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        view(output)[:] = 0.5

    net.enqueue = constant  # type: ignore[method-assign]
    loop = DeviceLoop(net.device, net, SHAPE)
    quietly(net, loop)
    assert list(loop.graphs.states.values()) == ["checking"]
    assert net.device.calls["launch"] == 1


def test_a_graph_whose_key_has_moved_is_never_launched(wanted: np.ndarray) -> None:
    net = Net("always")

    def move() -> None:
        net.key += 1  # as when a scratch block grows meanwhile

    net.device.before = move
    loop = DeviceLoop(net.device, net, SHAPE)
    np.testing.assert_array_equal(quietly(net, loop), wanted)
    assert net.device.calls["capture"] > 2
    assert net.device.calls["launch"] == 0


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_call_that_fails_is_an_error(step: int) -> None:
    net, calls = Net("always"), []
    enqueue = net.enqueue

    def broken(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) > step:
            raise EngineError("unet failed")
        enqueue(*arguments)

    net.enqueue = broken  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="unet failed"):
        made(net)


def test_what_a_graph_cannot_hold_is_called(wanted: np.ndarray) -> None:
    """A model that allocates in every call, which is refused in a graph."""
    net = Net("always")
    enqueue = net.enqueue

    def greedy(*arguments: Any) -> None:
        net.device.free(net.device.allocate(64))
        enqueue(*arguments)

    net.enqueue = greedy  # type: ignore[method-assign]
    with pytest.warns(EngineWarning, match="allocating memory: a captured graph cannot hold it"):
        np.testing.assert_array_equal(made(net), wanted)


def test_values_that_are_not_finite_in_a_check_name_the_step() -> None:
    net, calls = Net("proven"), []
    enqueue = net.enqueue

    def broken(sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        enqueue(sample, timestep, output, stream)
        calls.append(1)
        if len(calls) == 4:
            view(output)[0] = np.nan

    net.enqueue = broken  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="unet, step 4, gave values that are not finite"):
        quietly(net)  # it says nothing of graphs


def test_keys_are_bounded() -> None:
    net = Net("always")
    loop = DeviceLoop(net.device, net, SHAPE)
    for key in range(3 * MAX_KEYS):
        net.key = key
        made(net, loop)
    assert len(loop.graphs.states) == MAX_KEYS
    loop.close()
    assert not loop.graphs.states


def test_difference() -> None:
    one = np.array([1.0, -2.0], np.float16)
    assert difference(one, one) == 0
    assert difference(np.array([1.0, -2.5], np.float16), one) == 0.25
    assert difference(np.array([np.nan, -2.0], np.float16), one) == np.inf
    assert difference(one, np.zeros(2, np.float16)) > CHANGE
    assert difference(np.zeros(2), np.zeros(2)) == 0


def test_a_step_holds_no_dictionary() -> None:
    net = Net("always")
    step = next(iter(DeviceLoop(net.device, net, SHAPE).run(TABLE, [TorchCpuGenerator(5)] * 2)))
    assert isinstance(step, DeviceStep)
    assert not hasattr(step, "__dict__")
    step.settle()
    np.testing.assert_array_equal(step.after, step.after)
