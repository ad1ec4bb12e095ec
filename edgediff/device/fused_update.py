"""The fused update runs a plan's row in one kernel, from the model's output to its next input.

Every buffer keeps its address while the loop lives, so that a captured graph may hold it; what a run changes is copied
into the buffers in front of it. The host has no place between a row and the next model input: one kernel writes both.
So what a row needs lies beside the state. A mask, for one, is three further names in ``buffers`` (the mask, the
original's latents, their noise), filled by ``load``. The kernel reads them where it makes ``x'``, with the row's
``(ka, ks)``, as the host loop does by ``between``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import ArgumentError, EngineError
from ..sampling.kernel_layout import BAD_OUTPUT, BAD_PIXELS, HEADER, ROW, header_of
from ..sampling.planning import Plan
from .array import DeviceArray
from .base import PreparedUpdate
from .geometry import Geometry
from .memory import DeviceMemory
from .noise import RunNoise

HALVES = 2  # of the model's batch: unconditional, then conditional


@dataclass
class FusedUpdate:
    """A fused update holds a loop's state on the device and moves it on by a row of the plan.

    Args:
        memory: for its buffers.
        shape: of the state, (B, C, h, w).
        sample, output, timestep: the model's tensors, with room for both halves.
        rows, depth: room for plans: U-Net calls, and values of history.
        previews: whether to keep the x0 estimate.
        emulated: on the host, walk the grid of a GPU with so many multiprocessors; 0 walks none.

    Raises:
        ArgumentError: a geometry that the kernels refuse.
        EngineError: no kernels, no memory.
    """

    memory: DeviceMemory
    shape: tuple[int, int, int, int]
    sample: DeviceArray
    output: DeviceArray
    timestep: DeviceArray
    rows: int
    depth: int
    previews: bool
    emulated: int = 0
    version: int = field(init=False, default=0)  # of the state; see ``renew``
    _header: NDArray[Any] = field(init=False, repr=False)
    _sampler: str = field(init=False, repr=False, default="")
    _table: NDArray[Any] | None = field(init=False, repr=False, default=None)  # which lies on the device
    _prepared: PreparedUpdate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kernels = self.memory.device.kernels  # the first thing to say
        self._header = np.zeros(1, HEADER)
        batch, size = self.shape[0], math.prod(self.shape[1:])
        sizes = {
            "header": HEADER.itemsize,
            "rows": self.rows * ROW.itemsize,
            "seeds": batch * 8,
            "x": batch * size * 4,
            "history": self.depth * batch * size * 4,
            "x0": batch * size * 4 if self.previews else 0,
        }
        buffers = {name: self.memory.reserve(name, nbytes) for name, nbytes in sizes.items() if nbytes}
        buffers |= {"input": self.sample.block, "output": self.output.block, "timestep": self.timestep.block}
        geometry = Geometry(
            batch=batch,
            size=size,
            stride=math.prod(self.sample.shape[1:]),
            depth=self.depth,
            rows=self.rows,
            copies=HALVES,
            input=self.sample.dtype,
            output=self.output.dtype,
            timestep=self.timestep.dtype,
        )
        self._prepared = kernels.update(geometry, buffers, self.emulated)

    @property
    def state(self) -> DeviceArray:
        """The state on the device, float32."""
        return DeviceArray(self.memory["x"].address, self.shape, "float32")

    def renew(self) -> int:
        """The version of the state that is enqueued next; earlier ones cannot be fetched any more."""
        self.version += 1
        return self.version

    def load(self, plan: Plan, table: NDArray[Any], noise: RunNoise) -> None:
        """Copy what a run changes to the device, in front of it, and make the model's first input.

        Args:
            plan, table: the rows, and the same as the kernels read them.
            noise: of this run.
        """
        device, header, x = self.memory.device, self._header, noise.first_state
        drawn = noise.first_draw if x is None else 0
        values = 0
        if noise.values is not None:
            block = self.memory.reserve("noise", noise.values.nbytes)
            device.upload(block.address, noise.values)
            values = block.address
        if noise.seeds is not None:
            device.upload(self.memory["seeds"].address, noise.seeds)
        self._sampler = plan.sampler
        if x is not None:
            device.upload(self.memory["x"].address, x)
        if table is not self._table:  # a plan keeps its table, and nothing changes it there
            self._table = None
            device.upload(self.memory["rows"].address, table)
            self._table = table
        header[0] = header_of(
            steps=len(plan.rows),
            depth=plan.depth,
            copies=HALVES if plan.guided else 1,
            start=plan.start,
            threads=noise.threads,
            drawn=drawn,
            first_draw=noise.first_draw,
            rounds=noise.rounds,
            noise=values,
        )
        device.upload(self.memory["header"].address, header)
        self._prepared.begin()

    def step(self) -> None:
        """Enqueue the next row, which the device counts."""
        self._prepared.step()

    def fetch(self, name: str, version: int) -> Float32:
        """The state ("x") or the x0 estimate ("x0") of a version, (B, C, h, w). Waits for the device.

        Raises:
            ArgumentError: another version is there, or no estimates are kept.
            EngineError: it is not finite.
        """
        if name == "x0" and not self.previews:
            raise ArgumentError("this loop keeps no x0 estimates; make it with previews=True")
        out = np.empty(self.shape, np.float32)
        with self.memory.device.lock:  # another thread may run the loop
            if version != self.version:
                raise ArgumentError("the loop has gone on since this step; ask a step for its values before the next")
            self.memory.device.download(self.memory[name].address, out)
            self.check()
        return out

    def check(self) -> None:
        """Wait for the device; ``EngineError`` naming the part whose values were not finite, and the step."""
        self.memory.device.download(self.memory["header"].address, self._header)
        what, step = int(self._header["bad_what"][0]), int(self._header["bad_step"][0])
        if what & BAD_OUTPUT:
            raise EngineError(f"unet, step {step + 1}, gave values that are not finite (NaN or infinity)")
        if what & BAD_PIXELS:
            raise EngineError("vae_decoder gave values that are not finite (NaN or infinity)")
        if what:
            raise EngineError(f"sampler {self._sampler}, step {step + 1}, gave values that are not finite")
