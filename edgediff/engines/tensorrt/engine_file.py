"""An engine file lies beside a JSON file that describes it: what it was built from, by and for."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...bundle.manifest import HASH_LIMIT, sha256
from ...errors import EngineError
from .options import BuildOptions, read_options
from .profiles import Profile

FORMAT = 1
SUFFIX = ".engine"


class DamagedEngineFile(EngineError):
    """An engine file is not what was built."""


@dataclass(frozen=True)
class Platform:
    """A platform runs engine files: a GPU, its compute capability, TensorRT's version, the machine."""

    gpu: str
    capability: tuple[int, int]
    tensorrt: tuple[int, ...]
    machine: str = field(default_factory=lambda: f"{sys.platform}-{platform.machine()}".lower())


@dataclass(frozen=True)
class BuiltEngine:
    """A built engine is an engine file and its description; ``size`` and ``sha256`` are of the file."""

    part: str
    graph: str  # sha256 of the ONNX graph
    weights: tuple[str, ...]  # of the files beside it
    platform: Platform  # that built it
    profile: Profile
    options: BuildOptions = field(default_factory=BuildOptions)
    size: int = 0
    sha256: str = ""
    seconds: float = 0.0
    path: Path | None = None  # where it was found

    @property
    def key(self) -> str:
        """Return hex digits; two engine files of one key may stand for each other."""
        facts = [self.part, self.graph, self.weights, asdict(self.platform), self.profile, self.options.identity]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def why_not(self, platform: Platform) -> str:
        """Tell why a platform cannot run this engine file, or an empty string."""
        built, hardware = self.platform, self.options.hardware
        if built.machine != platform.machine:
            return f"was built on {built.machine}, this is {platform.machine}"
        if reason := self._why_not_version(platform):
            return reason
        if hardware == "ampere_plus":
            return "" if platform.capability >= (8, 0) else "needs a GPU of compute capability 8.0 or above"
        if built.capability != platform.capability:
            of_build, of_platform = (".".join(map(str, p.capability)) for p in (built, platform))
            return f"was built for compute capability {of_build}, this GPU has {of_platform}"
        if hardware == "none" and built.gpu != platform.gpu:
            return f"was built for {built.gpu}, this is {platform.gpu}"
        return ""

    def _why_not_version(self, platform: Platform) -> str:
        built, present = self.platform.tensorrt, platform.tensorrt
        of_build, of_platform = (".".join(map(str, version)) for version in (built, present))
        if self.options.version_compatible:
            return "" if built <= present else f"was built by TensorRT {of_build}, which is newer than {of_platform}"
        return "" if built == present else f"was built by TensorRT {of_build}, this is {of_platform}"

    def damage(self) -> str:
        """Tell why the file is not the one that was built, or an empty string. Large files are not hashed: TensorRT
        refuses what it cannot read.
        """
        assert self.path is not None
        try:
            size = self.path.stat().st_size
            if size != self.size:
                return f"has {size} bytes, and had {self.size} when it was built"
            if size <= HASH_LIMIT and sha256(self.path) != self.sha256:
                return "is damaged (another sha256 than when it was built)"
        except OSError as error:
            return f"cannot be read: {error}"
        return ""


def to_json(built: BuiltEngine) -> str:
    """Return the description as it is written."""
    facts = {name: value for name, value in asdict(built).items() if name != "path"}
    return json.dumps({"format": FORMAT, **facts}, indent=1)


def read_description(file: Path) -> BuiltEngine:
    """Return what a description tells. Raises what broken JSON raises: OSError, ValueError, TypeError or KeyError."""
    data = json.loads(file.read_text(encoding="utf-8"))
    if data.pop("format") != FORMAT:
        raise ValueError("another format")
    shapes: Mapping[str, Any] = data["profile"]
    facts = data["platform"]
    return BuiltEngine(
        **{
            **data,
            "weights": tuple(data["weights"]),
            "platform": Platform(
                **{**facts, "capability": tuple(facts["capability"]), "tensorrt": tuple(facts["tensorrt"])}
            ),
            "profile": {name: tuple(tuple(map(int, shape)) for shape in three) for name, three in shapes.items()},
            "options": read_options(data["options"]),
        },
        path=file.with_suffix(SUFFIX),
    )
