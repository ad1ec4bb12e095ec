"""A foreign engine shows another exporter's graph as a part of ours: its names, types, batch and sizes are adapted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import finite
from ..bundle.foreign.adaptation import Adaptation
from ..bundle.manifest import Latent, Part, Tensor
from ..bundle.onnx_file.header import Port
from ..errors import EngineError
from .base import Engine, Shapes

CELLS = {"height": "latent_height", "width": "latent_width"}


def graph_part(adaptation: Adaptation) -> Part:
    """The graph's own inputs and outputs, as an engine of it must have them."""

    def tensors(ports: tuple[Port, ...]) -> tuple[Tensor, ...]:
        return tuple(Tensor(port.name, port.dtype, port.shape) for port in ports)

    return Part((), tensors(adaptation.header.inputs), tensors(adaptation.header.outputs))


class ForeignEngine:
    """This engine takes and gives what a part of a bundle does, and calls the engine of a foreign graph.

    Nobody has proved such a folder, so every output's shape is held against what it must be, and the first call's
    values must be finite.

    Args:
        name: the part's name, for messages.
        engine: of the graph itself.
        part: what is shown: names, float32 and int64, sizes.
        adaptation: which of the graph's tensors is which.
        latent: how pixels and latent cells go together.
    """

    def __init__(self, name: str, engine: Engine, part: Part, adaptation: Adaptation, latent: Latent) -> None:
        self.name, self.inputs, self.outputs = name, part.inputs, part.outputs
        self._engine, self._adaptation, self._latent = engine, adaptation, latent
        self._checked = False

    def refuses(self, shapes: Shapes) -> str:
        """Tell which size the graph does not take."""
        for tensor in self.inputs:
            for wanted, size in zip(tensor.shape, shapes.get(tensor.name, ()), strict=False):
                if isinstance(wanted, int) and wanted != size:
                    taken = list(shapes[tensor.name])
                    return f"{self._adaptation.folder}'s graph takes {tensor.name} {list(tensor.shape)}, not {taken}"
        return ""

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once, or once for every batch that the graph takes.

        Raises:
            EngineError: the graph failed, or gave another shape than the part's, or values that are not finite.
        """
        count = len(next(iter(inputs.values())))
        batch = self._adaptation.batch or count
        rows = [self._call(inputs, at, min(at + batch, count), batch) for at in range(0, count, batch)]
        out = {t.name: np.concatenate([row[t.name] for row in rows]) for t in self.outputs}
        self._check(inputs, out)
        return out

    def _call(self, inputs: Mapping[str, NDArray[Any]], start: int, stop: int, batch: int) -> dict[str, NDArray[Any]]:
        """Run the graph on some entries, filled up with copies of the last to the batch that it takes."""
        filling = batch - (stop - start)
        feed = {}
        for name, port in self._adaptation.inputs.items():
            values = inputs[name][start:stop]
            if filling:
                values = np.concatenate([values, np.repeat(values[-1:], filling, axis=0)])
            feed[port.name] = self._time(port, values) if name == "timestep" else values.astype(port.dtype, copy=False)
        found = self._engine(**feed)
        out = {}
        for name, given in self._adaptation.outputs.items():
            values = found[given.port.name]
            if values.ndim < 2:
                shape = list(values.shape)
                raise EngineError(f"{self.name} gave {given.port.name} of shape {shape}; it must be a batch")
            values = values[: stop - start].astype(np.float32, copy=False)
            if given.half is not None:
                channels = values.shape[1] // 2
                values = values[:, given.half * channels : (given.half + 1) * channels]
            out[name] = values
        return out

    def _time(self, port: Port, values: NDArray[Any]) -> NDArray[Any]:
        """The timestep as the graph takes it: one number, one in a list, or one an entry."""
        kind = np.dtype(port.dtype)
        if kind.kind == "i" and not np.array_equal(values, np.rint(values)):
            raise EngineError(f"{self.name} takes whole timesteps ({port}), and is told {float(values[0]):g}")
        told = values.astype(kind)
        entries = len(port.shape) == 1 and (port.shape[0] == len(values) or self._named_as_sample(port))
        if entries:
            return told
        if (values != values[0]).any():
            raise EngineError(f"{self.name} takes one timestep a call ({port}), and is told {values.tolist()}")
        return told[:1] if len(port.shape) == 1 and port.shape != ("?",) else told[:1].reshape(())

    def _named_as_sample(self, port: Port) -> bool:
        """Whether a list of timesteps has the length of the batch, by the name of its size."""
        sample = self._adaptation.inputs["sample"].shape
        return isinstance(port.shape[0], str) and sample[:1] == port.shape[:1] != ("?",)

    def _check(self, inputs: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any]]) -> None:
        sizes = self._sizes(inputs)
        for tensor in self.outputs:
            values = out[tensor.name]
            wanted = [sizes.get(size, size) for size in tensor.shape]
            fits = all(w == s for w, s in zip(wanted, values.shape, strict=False) if isinstance(w, int))
            if len(values.shape) != len(wanted) or not fits:
                raise EngineError(f"{self.name} gave {tensor.name} of shape {list(values.shape)}; it must be {wanted}")
            if not self._checked and not finite(values):
                bad = int(np.count_nonzero(~np.isfinite(values)))
                weights = ", ".join(sorted(self._adaptation.header.weights))
                raise EngineError(
                    f"{self.name} gave {bad} of {values.size} values of {tensor.name} that are not finite (NaN or "
                    f"infinity); its graph's weights are {weights}"
                )
        self._checked = True

    def _sizes(self, inputs: Mapping[str, NDArray[Any]]) -> dict[int | str, int]:
        """The sizes that have names, as the inputs tell them."""
        sizes: dict[int | str, int] = {}
        for tensor in self.inputs:
            named = zip(tensor.shape, inputs[tensor.name].shape, strict=False)
            sizes |= {name: size for name, size in named if isinstance(name, str) and name != "?"}
        for pixels, cells in CELLS.items():
            if cells in sizes:
                sizes[pixels] = sizes[cells] * self._latent.factor
            elif pixels in sizes:
                sizes[cells] = sizes[pixels] // self._latent.factor
        return sizes
