"""Scratch memory holds the activations of TensorRT's engines."""

from __future__ import annotations

from ...device.base import Device

ALIGNMENT = 512  # TensorRT asks it of scratch memory


class Scratch:
    """One part runs at a time on a device's stream, so one block of scratch memory serves all of them.

    It lives as long as its device, and so holds no reference to it.
    """

    def __init__(self) -> None:
        self.address = self.size = self._block = 0

    def reserve(self, device: Device, size: int) -> int:
        """Return the address of at least ``size`` bytes, a multiple of 512; it changes when the block has to grow. No
        bytes may have no address, 0.

        Raises:
            EngineError: no memory.
        """
        if size > self.size:
            self._let_go(device)
            self._block = device.allocate(size + ALIGNMENT)
            self.address, self.size = -(-self._block // ALIGNMENT) * ALIGNMENT, size
        return self.address

    def _let_go(self, device: Device) -> None:
        if self._block:
            block, self.address, self.size, self._block = self._block, 0, 0, 0
            device.free(block)  # once what is enqueued has run
            device.trim()  # a block is hundreds of megabytes, which TensorRT and ONNX Runtime cannot take from the pool
