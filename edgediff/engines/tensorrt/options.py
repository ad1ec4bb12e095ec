"""Build options are what a build is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checks import is_whole
from ...errors import ArgumentError, choices
from .profiles import Ranges

COMPATIBLE = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True)
class BuildOptions:
    """These options say how an engine file is built.

    Args:
        ranges: shapes that the engine must serve.
        workspace: most GPU memory in bytes that a kernel may take; all when None.
        level: 0 .. 5, how long to look for fast kernels; TensorRT's own (3) when None.
        hardware: none, ampere_plus or same_compute_capability: other GPUs that the engine shall run on.
        version_compatible: whether newer TensorRTs shall run it, the lean runtime among them.
        stripped: leave the weights out; they come from the ONNX file when the engine file is opened.
        memory_limit: most host memory in bytes; 90 % of what is free when None. Watched on Linux.

    Raises:
        ArgumentError: a value out of range.
    """

    ranges: Ranges = field(default_factory=Ranges)
    workspace: int | None = None
    level: int | None = None
    hardware: str = "none"
    version_compatible: bool = False
    stripped: bool = False
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.hardware not in COMPATIBLE:
            raise ArgumentError(f"no hardware compatibility {self.hardware!r}; choose from {choices(COMPATIBLE)}")
        if self.level is not None and self.level not in range(6):
            raise ArgumentError(f"level is {self.level!r}; it must be 0 .. 5")
        for name in ("workspace", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, 1):
                raise ArgumentError(f"{name} is {value!r}; it must be a number of bytes")

    @property
    def identity(self) -> tuple[Any, ...]:
        """Tell what makes another engine of the same profile; the rest bounds the build alone."""
        return self.level, self.hardware, self.version_compatible, self.stripped


def read_options(data: Mapping[str, Any]) -> BuildOptions:
    """Return the options again, from what ``dataclasses.asdict`` and JSON made of them. Raises as broken JSON does."""
    ranges: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data["ranges"].items()
    }
    return BuildOptions(**{**data, "ranges": Ranges(**ranges)})
