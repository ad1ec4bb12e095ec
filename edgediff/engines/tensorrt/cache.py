"""TensorRT plans on disk: what each was built from and for, and which of them may run here.

A plan lies beside a JSON file that describes it. The description is written last, under its final name at once, so a
plan without one was never finished and is not seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ...bundle.manifest import HASH_LIMIT, PLAIN, WEIGHTS, Bundle, File, sha256
from ...errors import EngineError
from .profiles import Profile

FORMAT = 1
NO_PLAN = "no plan was built; run: edgediff build"
VARIABLE = "EDGEDIFF_CACHE"
COMPATIBLE = ("none", "ampere_plus", "same_compute_capability")
STALE = 86_400.0  # seconds after which what a killed build left is cleared away
TYPED = ("fp16", "fp32")  # precisions whose graphs carry their types, which TensorRT follows


class DamagedEngineFile(EngineError):
    """A plan's file is not what was built."""


@dataclass(frozen=True)
class Platform:
    """What runs plans here."""

    gpu: str
    capability: tuple[int, int]
    tensorrt: tuple[int, ...]
    machine: str = field(default_factory=lambda: f"{sys.platform}-{platform.machine()}".lower())


@dataclass(frozen=True)
class BuiltEngine:
    """What a plan was built from and for; ``size`` and ``sha256`` are of its file."""

    part: str
    graph: str  # sha256 of the ONNX graph
    weights: tuple[str, ...]  # of the files beside it
    gpu: str
    capability: tuple[int, int]
    tensorrt: tuple[int, ...]
    machine: str
    profile: Profile
    level: int | None = None
    hardware: str = "none"
    version_compatible: bool = False
    stripped: bool = False
    size: int = 0
    sha256: str = ""
    seconds: float = 0.0
    path: Path | None = None  # where it was found

    @property
    def key(self) -> str:
        """Hex; two plans of one key may stand for each other."""
        facts = {k: v for k, v in asdict(self).items() if k not in ("size", "sha256", "seconds", "path")}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def why_not(self, here: Platform) -> str:
        """Why this plan may not run here, or an empty string."""
        if self.machine != here.machine:
            return f"was built on {self.machine}, this is {here.machine}"
        if reason := self._why_not_version(here):
            return reason
        capability = ".".join(map(str, self.capability))
        if self.hardware == "ampere_plus":
            return "" if here.capability >= (8, 0) else "needs a GPU of compute capability 8.0 or above"
        if self.capability != here.capability:
            found = ".".join(map(str, here.capability))
            return f"was built for compute capability {capability}, this GPU has {found}"
        if self.hardware == "none" and self.gpu != here.gpu:
            return f"was built for {self.gpu}, this is {here.gpu}"
        return ""

    def _why_not_version(self, here: Platform) -> str:
        own, found = (".".join(map(str, v)) for v in (self.tensorrt, here.tensorrt))
        if self.version_compatible:
            return "" if self.tensorrt <= here.tensorrt else f"was built by TensorRT {own}, which is newer than {found}"
        return "" if self.tensorrt == here.tensorrt else f"was built by TensorRT {own}, this is {found}"


@dataclass(frozen=True)
class EngineSource:
    """What a part's plan is built from."""

    path: Path
    graph: str
    weights: tuple[str, ...]
    size: int  # bytes, with the weights


def source(bundle: Bundle, part: str) -> EngineSource:
    """The typed graph of a part, without fused attention; its files are there and of the right size.

    Raises:
        EngineError: the part has none; the message says which precision to export.
        BundleError: a file is missing or damaged.
    """
    files = bundle.parts[part].files
    chosen = next((f for f in files if f.engine == PLAIN), None)
    if chosen is None:
        chosen = next((f for f in files if f.engine == "onnx" and f.precision in TYPED), None)
    if chosen is None or (chosen.engine == "onnx" and _fused(bundle.path(part, chosen, hashed=False))):
        found = ", ".join(dict.fromkeys(f.precision for f in files))
        raise EngineError(
            f"{part}: TensorRT builds from graphs exported with --precision fp16; bundle {bundle.name!r} has {found}"
        )
    weights = [f for f in files if f.engine == WEIGHTS and f.path.startswith(_stem(chosen))]
    for file in (chosen, *weights):
        path = bundle.path(part, file, hashed=file.size <= HASH_LIMIT)
        if file is chosen:
            graph = path
    return EngineSource(graph, chosen.sha256, tuple(f.sha256 for f in weights), sum(f.size for f in (chosen, *weights)))


def _stem(file: File) -> str:
    return file.path.removesuffix(".onnx").removesuffix(".plain") + ".onnx"


def _fused(path: Path) -> bool:
    """Whether the graph holds nodes of ONNX Runtime's own. Their domain's name stands in the file as it is."""
    with path.open("rb") as f:
        tail = b""
        while piece := f.read(1 << 20):
            if b"com.microsoft" in tail + piece:
                return True
            tail = piece[-16:]
    return False


def default_folder() -> Path:
    """Where plans are kept: ``$EDGEDIFF_CACHE``, or the user's cache folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edgediff"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgediff"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgediff"


@dataclass(frozen=True)
class EngineCache:
    """A folder of plans."""

    folder: Path

    def find(self, wanted: EngineSource, part: str, here: Platform) -> tuple[list[BuiltEngine], list[str]]:
        """The plans of a part that may run here, the newest first, and why others may not."""
        good, reasons = [], []
        for file in sorted(self._of(wanted.graph).glob(f"{part}-*.json"), key=_age):
            try:
                plan = _read(file)
            except (OSError, ValueError, TypeError, KeyError) as error:
                reasons.append(f"{file.name}: the description cannot be read ({type(error).__name__})")
                continue
            if plan.weights != wanted.weights:
                reasons.append(f"{file.stem}: was built from other weights")
            elif reason := plan.why_not(here) or _damage(plan):
                reasons.append(f"{file.stem}: {reason}")
            else:
                good.append(plan)
        return good, reasons

    @contextmanager
    def scratch(self, room: int) -> Iterator[Path]:
        """A folder inside the cache for a build that needs ``room`` bytes; it is gone afterwards.

        Raises:
            EngineError: the cache cannot be written, or has no such room.
        """
        import tempfile  # 3 ms that only a build needs

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(".building-*"):
                if time.time() - old.stat().st_mtime > STALE:
                    shutil.rmtree(old, ignore_errors=True)
            free = shutil.disk_usage(self.folder).free
            if free < room:
                raise EngineError(f"{self.folder} has {free / 1e9:.1f} GB free; a plan needs about {room / 1e9:.1f} GB")
            folder = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder))
        except OSError as error:
            raise EngineError(f"the cache of plans at {self.folder} cannot be written: {error}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, built: Path, plan: BuiltEngine) -> BuiltEngine:
        """Move a finished plan to its place, durably; what was there is replaced.

        Raises:
            EngineError: the disk is full, or the cache cannot be written.
        """
        folder = self._of(plan.graph)
        place = folder / f"{plan.part}-{plan.key[:16]}.plan"
        description = place.with_suffix(".json")
        finished = _described(built, plan)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with built.open("rb") as f:
                os.fsync(f.fileno())
            text = json.dumps({"format": FORMAT, **_plain(finished)}, indent=1)
            new = built.with_suffix(".json")
            with new.open("w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            with suppress(FileNotFoundError):
                description.unlink()  # it would describe another file for a moment
            built.replace(place)
            new.replace(description)
        except OSError as error:
            raise EngineError(f"the plan cannot be kept in {folder}: {error}") from error
        return _read(description)

    def drop(self, plan: BuiltEngine) -> None:
        """Take a plan away that did not open."""
        if plan.path is not None:
            for file in (plan.path.with_suffix(".json"), plan.path):
                with suppress(OSError):
                    file.unlink()

    def timing(self, here: Platform) -> Path:
        """Where timings of kernels are kept, which make the next build on this GPU faster."""
        text = "-".join([here.gpu, *map(str, here.capability), *map(str, here.tensorrt), here.machine])
        return self.folder / f"timing-{hashlib.sha256(text.encode()).hexdigest()[:16]}.bin"

    def _of(self, graph: str) -> Path:
        return self.folder / "plans" / graph[:16]


def _age(file: Path) -> float:
    with suppress(OSError):
        return -file.stat().st_mtime
    return 0.0


def _damage(plan: BuiltEngine) -> str:
    """Why the file is not the one that was built. Large ones are not hashed: TensorRT refuses what it cannot read."""
    assert plan.path is not None
    try:
        size = plan.path.stat().st_size
        if size != plan.size:
            return f"has {size} bytes, and had {plan.size} when it was built"
        if size <= HASH_LIMIT and sha256(plan.path) != plan.sha256:
            return "is damaged (another sha256 than when it was built)"
    except OSError as error:
        return f"cannot be read: {error}"
    return ""


def _described(built: Path, plan: BuiltEngine) -> BuiltEngine:
    facts = {f.name: getattr(plan, f.name) for f in fields(plan)}
    return BuiltEngine(**{**facts, "size": built.stat().st_size, "sha256": sha256(built), "path": None})


def _plain(plan: BuiltEngine) -> dict[str, Any]:
    return {k: v for k, v in asdict(plan).items() if k != "path"}


def _read(file: Path) -> BuiltEngine:
    """Raises what broken JSON raises: OSError, ValueError, TypeError or KeyError."""
    data = json.loads(file.read_text(encoding="utf-8"))
    if data.pop("format") != FORMAT:
        raise ValueError("another format")
    shapes: Mapping[str, Any] = data["profile"]
    data["profile"] = {name: tuple(tuple(map(int, s)) for s in three) for name, three in shapes.items()}
    for name in ("weights", "capability", "tensorrt"):
        data[name] = tuple(data[name])
    return BuiltEngine(**data, path=file.with_suffix(".plan"))
