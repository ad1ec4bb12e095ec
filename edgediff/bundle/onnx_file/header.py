"""A graph's header: what an ONNX file says of it, without its weights."""

from __future__ import annotations

from dataclasses import dataclass, field

STANDARD = ("", "ai.onnx")  # ONNX's own operator domain


@dataclass(frozen=True)
class Port:
    """An input or output as the file declares it; a dimension is a number, a name, or "?" where nothing is said."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass
class GraphHeader:
    """A header is all that is read of an ONNX file.

    Attributes:
        inputs, outputs: of the graph; inputs that have a default are weights, and left out.
        opsets: the version of each operator domain.
        operators: (domain, operator) of every node, those of inner graphs and functions included.
        external: the files of weights that it names, and how many bytes each must have for what is read of it.
        weights: how many bytes of weights it has of each type, where shapes tell.
    """

    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    operators: set[tuple[str, str]] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    external: dict[str, int] = field(default_factory=dict)
    weights: dict[str, int] = field(default_factory=dict)

    @property
    def custom(self) -> list[tuple[str, str]]:
        """The operators outside ONNX's own domain, sorted."""
        return sorted(pair for pair in self.operators if pair[0] not in STANDARD)
