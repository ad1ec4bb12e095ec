"""A job is one export: what is read, what is asked for, and where it grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .onnx_graph.binding import Bind, binder
from .onnx_graph.graph import Graph, read_traced
from .onnx_graph.recipes import PartRecipe
from .precision.precisions import PRECISIONS, Case
from .progress import Progress
from .proof.golden import load_cases
from .proof.lazy_pipeline import collect_garbage
from .sources.base import Source
from .workspace import Workspace

PICTURES = "pictures"  # names the file of the golden pictures, and of the calls that drew them


@dataclass(frozen=True)
class ExportJob:
    """One export, as its stages share it: each stage runs through ``step``, and is done once."""

    source: Source
    facts: dict[str, Any]
    recipes: list[PartRecipe]
    precision: dict[str, str]  # by part
    workspace: Workspace
    progress: Progress
    pictures: torch.Tensor | None
    size: int  # of the model in fp32, bytes
    asked_floor: float | None = None

    @property
    def floor(self) -> float:
        """The least PSNR of the final pictures, dB: as asked for, else that of the precision."""
        return self.precision_floor if self.asked_floor is None else float(self.asked_floor)

    @property
    def precision_floor(self) -> float:
        """The least PSNR that a bundle of these precisions has, dB: that of the lowest."""
        return min(PRECISIONS[p].floor for p in self.precision.values())

    def path(self, part: str) -> Path:
        """Tell where a part's traced graph lies. It holds no weights: those stay in the source's files."""
        return self.workspace.root / "traced" / f"{part}.onnx"

    def graph(self, recipe: PartRecipe) -> Graph:
        """Read a part's traced graph, in fp32, over the source's weights."""
        return read_traced(self.path(recipe.name), self.bind(recipe))

    def bind(self, recipe: PartRecipe) -> Bind:
        """Give the function that finds a part's weights."""
        return binder(recipe.component, self.source.weights(recipe.component))

    def case_file(self, name: str) -> Path:
        """Tell where the golden tensors of a part, or of the pictures, lie until the bundle takes them."""
        return self.workspace.root / "cases" / f"{name}.safetensors"

    def cases(self, part: str) -> list[Case]:
        """Load golden inputs and outputs: an example at another batch and size than the traced one, and real calls."""
        return load_cases([self.case_file(part), self.case_file(PICTURES)], part)

    def step(self, name: str, do: Callable[[], tuple[Any, list[Path]]]) -> Any:
        """Do a step, unless it was done before; return what it said of itself."""
        if (result := self.workspace.result(name)) is not None:
            self.progress.skip(name)
            return result
        self.progress.start(name)
        facts, files = do()
        self.workspace.finish(name, facts, files)
        collect_garbage(self.size)
        return facts
