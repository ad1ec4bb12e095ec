"""Device memory has names here, and what lives together is given back together."""

from __future__ import annotations

from .array import Block, DeviceArray
from .base import Device


class DeviceMemory:
    """A device memory keeps blocks by name and gives them back together.

    Args:
        device: where the blocks lie; it must outlive them.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._blocks: dict[str, Block] = {}

    def __getitem__(self, name: str) -> Block:
        return self._blocks[name]

    def reserve(self, name: str, nbytes: int) -> Block:
        """The block of this name, of at least ``nbytes``. A fresh one is zero, and takes the place of one too small.

        Raises:
            EngineError: no memory; the block of this name is gone then.
        """
        block = self._blocks.get(name)
        if block is not None and block.nbytes < nbytes:
            del self._blocks[name]  # before anything can fail
            self.device.free(block.address)
            block = None
        if block is None:
            block = self._blocks[name] = Block(self.device.allocate(nbytes), nbytes)
        return block

    def array(self, name: str, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """An array at the start of the block of this name, as ``reserve`` gives it."""
        block = self.reserve(name, DeviceArray(0, shape, dtype).nbytes)
        return DeviceArray(block.address, shape, dtype)

    def close(self) -> None:
        """Give every block back."""
        while self._blocks:
            self.device.free(self._blocks.popitem()[1].address)
