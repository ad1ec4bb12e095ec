"""The kernels of the host: the CPU twin in edgediff-kernels, over addresses of the host's memory."""

from __future__ import annotations

from collections.abc import Mapping

from ..sampling.kernels import require_package
from .array import Block
from .base import PreparedUpdate
from .geometry import Geometry, check_pixels, check_unscale


class HostKernels:
    """``HostKernels`` does a launch's work when it is enqueued.

    Raises:
        EngineError: edgediff-kernels is not installed, or of another ABI.
    """

    def __init__(self) -> None:
        self._module = require_package()

    def update(self, geometry: Geometry, buffers: Mapping[str, Block], emulated: int = 0) -> PreparedUpdate:
        state = geometry.state(buffers)
        grid = tuple(geometry.grid(state, emulated)) if emulated else None
        update: PreparedUpdate = self._module.Update(state=state.tobytes(), grid=grid)
        return update

    def unscale(self, x: Block, z: Block, dtype: str, count: int, scale: float, shift: float) -> None:
        check_unscale(x, z, dtype, count)
        half = dtype == "float16"
        self._module.unscale(x=x.address, z=z.address, half=half, count=count, scale=scale, shift=shift)

    def to_uint8(self, decoded: Block, pixels: Block, header: Block, dtype: str, images: int, area: int) -> None:
        check_pixels(decoded, pixels, header, dtype, images, area)
        self._module.to_uint8(
            decoded=decoded.address,
            pixels=pixels.address,
            header=header.address,
            half=dtype == "float16",
            images=images,
            area=area,
        )
