"""How the graphs of a foreign folder stand for the parts of a bundle: which of their tensors is which of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..onnx_file.header import GraphHeader, Port


@dataclass(frozen=True)
class Given:
    """An output of ours is an output of the graph, or one half of its channels: 0 the first, 1 the second."""

    port: Port
    half: int | None = None


@dataclass(frozen=True)
class Adaptation:
    """An adaptation says what a graph takes and gives in the place of a part of a bundle.

    Attributes:
        folder: the part's folder.
        header: what the file says of its graph.
        inputs: the graph's inputs by our names; all that it has.
        outputs: our outputs, by name.
    """

    folder: str
    header: GraphHeader
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Given]

    @property
    def batch(self) -> int | None:
        """How many entries a call must have; None for any number."""
        sizes = {port.shape[0] for name, port in self.inputs.items() if name != "timestep" and port.shape}
        fixed = [size for size in sizes if isinstance(size, int)]
        return fixed[0] if fixed else None

    @property
    def whole_times(self) -> bool:
        """Whether its timesteps are whole numbers."""
        return "timestep" in self.inputs and self.inputs["timestep"].dtype.startswith("int")


@dataclass(frozen=True)
class Foreign:
    """What a bundle is that was opened from another exporter's folder.

    Attributes:
        parts: the graphs, by the parts that they stand for.
        notes: what was assumed, and what is left out, each a sentence's end.
    """

    parts: Mapping[str, Adaptation]
    notes: tuple[str, ...] = ()
