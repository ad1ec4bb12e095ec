"""An engine file lies beside a JSON file that describes it: what it was built from, by and for."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...bundle.manifest import HASH_LIMIT, sha256
from ...checks import is_number
from ...errors import EngineError, choices, shown
from ...files import open_regular, read_regular
from .options import BuildOptions, read_options
from .profiles import Profile

FORMAT = 1
DESCRIPTION_LIMIT = 1 << 20  # bytes; one has about two thousand
KINDS: dict[str, type] = {"part": str, "graph": str, "size": int, "sha256": str}
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
            with open_regular(self.path) as file:  # a pipe has no bytes to hash, and no end
                size = os.fstat(file.fileno()).st_size
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
    """Return what a description tells.

    Raises:
        OSError: it cannot be read, or is no regular file, or a large one.
        ValueError: it is no description, or of another format; the message says what is wrong.
    """
    try:
        data = json.loads(read_regular(file, DESCRIPTION_LIMIT))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        shapes, facts, weights = data.pop("profile"), data.pop("platform"), data.pop("weights")
        built = BuiltEngine(
            **{name: _typed(name, data.pop(name), kind) for name, kind in KINDS.items()},
            weights=tuple(_typed("weights", w, str) for w in weights),
            platform=_platform(**facts),
            profile={name: tuple(map(_whole, three)) for name, three in shapes.items()},  # type: ignore[misc]
            options=read_options(data.pop("options")),
            seconds=_seconds(data.pop("seconds")),
            path=file.with_suffix(SUFFIX),
        )
    except (TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if data:
        raise ValueError(f"unknown fields {choices(map(shown, data))}")
    if built.size < 1 or any(len(three) != 3 for three in built.profile.values()):
        raise ValueError("an empty engine file, or another number of shapes than three")
    return built


def _platform(gpu: Any, capability: Any, tensorrt: Any, machine: Any) -> Platform:
    major, minor = _whole(capability)
    return Platform(_typed("gpu", gpu, str), (major, minor), _whole(tensorrt), _typed("machine", machine, str))


def _typed(name: str, value: Any, kind: type) -> Any:
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 1 << 63):
        raise ValueError(f"{name} is {shown(value)}")
    return value


def _whole(values: Any) -> tuple[int, ...]:
    return tuple(_typed("a size", value, int) for value in _typed("sizes", values, list))


def _seconds(value: Any) -> float:
    if not is_number(value, 0, 1e9):
        raise ValueError(f"seconds is {shown(value)}")
    return float(value)
