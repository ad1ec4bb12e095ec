"""Device memory by name, and what the host device refuses as a GPU would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgediff.device.array import Block, DeviceArray
from edgediff.device.host import HostDevice
from edgediff.device.memory import DeviceMemory
from edgediff.errors import ArgumentError, EngineError

from ..support.host_device import view


def test_a_name_keeps_its_block_until_it_is_too_small() -> None:
    device = HostDevice()
    memory = DeviceMemory(device)
    block = memory.reserve("noise", 1000)
    assert memory.reserve("noise", 10) == memory["noise"] == block == Block(block.address, 1000)
    grown = memory.reserve("noise", 1001)
    assert grown.nbytes == 1001
    assert list(device.memory) == [grown.address]
    memory.reserve("x", 8)
    memory.close()
    assert not device.memory


def test_arrays_are_zero_and_aligned() -> None:
    memory = DeviceMemory(HostDevice())
    for name, dtype in (("a", "float32"), ("b", "float16"), ("c", "int64")):
        array = memory.array(name, (2, 3), dtype)
        assert array.block == memory[name]
        assert array.address % 256 == 0
        assert not view(array).any()
    assert memory.array("a", (1, 2), "float16") == DeviceArray(memory["a"].address, (1, 2), "float16")


class Full(HostDevice):
    """No memory is left where ``full``."""

    full = False

    def allocate(self, size: int) -> int:
        if self.full:
            raise EngineError("out of memory")
        return super().allocate(size)


def test_a_block_that_cannot_grow_is_gone() -> None:
    device = Full()
    memory = DeviceMemory(device)
    memory.reserve("noise", 100)
    device.full = True
    with pytest.raises(EngineError, match="out of memory"):
        memory.reserve("noise", 200)
    assert not device.memory
    memory.close()  # and frees nothing twice
    device.full = False
    assert memory.reserve("noise", 50).address in device.memory


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda device, address: device.allocate(8), "allocating memory"),
        (lambda device, address: device.upload(address, np.ones(2)), "copying to the device"),
        (lambda device, address: device.download(address, np.ones(2)), "waiting for the device"),
    ],
    ids=["allocate", "upload", "download"],
)
def test_a_graph_on_the_host_holds_no_more_than_a_gpus(work: Callable[[Any, int], Any], message: str) -> None:
    device = HostDevice()
    address = device.allocate(16)
    with pytest.raises(EngineError, match=f"{message}: a captured graph cannot hold it"):
        device.launch(device.capture(lambda: work(device, address)))
    values = np.zeros(2)
    device.upload(address, np.arange(2.0))  # the device goes on
    device.download(address, values)
    np.testing.assert_array_equal(values, [0, 1])
    with pytest.raises(ArgumentError, match="values must be contiguous"):
        device.download(address, np.zeros((2, 2))[:, 0])
    device.close()
    assert not device.memory


def test_a_closed_device_refuses_everything() -> None:
    device = HostDevice()
    address, values = device.allocate(64), np.ones(4, np.float32)
    graph = device.capture(lambda: None)
    device.close()
    assert not device.memory
    for call in (
        device.use,
        lambda: device.allocate(1),
        lambda: device.upload(address, values),
        lambda: device.download(address, values),
        lambda: device.capture(lambda: None),
        lambda: device.launch(graph),
        device.mark,
        lambda: device.wait(None),
    ):
        with pytest.raises(EngineError, match="the device is closed"):
            call()
    device.free(address)  # it has been given back; whoever closes a loop late need not care
    device.close()
