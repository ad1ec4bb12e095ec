"""The engine cache is a folder of engine files, each beside its description.

The description is written last, under its final name at once, so an engine file without one was never finished and is
not seen.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...bundle.manifest import sha256
from ...errors import EngineError
from .engine_file import SUFFIX, BuiltEngine, Platform, read_description, to_json
from .source import EngineSource

NO_ENGINE_FILE = "no engine file was built; run: edgediff build"
STALE = 86_400.0  # seconds after which what a killed build left is cleared away


@dataclass(frozen=True)
class EngineCache:
    """An engine cache finds engine files that may run on a platform, and takes in new ones."""

    folder: Path

    def find(self, source: EngineSource, part: str, platform: Platform) -> tuple[list[BuiltEngine], list[str]]:
        """Return the engine files of a part that a platform may run, the newest first, and why others may not."""
        good, reasons = [], []
        for file in sorted(self._of(source.graph).glob(f"{part}-*.json"), key=_age):
            try:
                built = read_description(file)
            except (OSError, ValueError, TypeError, KeyError) as error:
                reasons.append(f"{file.name}: the description cannot be read ({type(error).__name__})")
                continue
            if built.weights != source.weights:
                reasons.append(f"{file.stem}: was built from other weights")
            elif reason := built.why_not(platform) or built.damage():
                reasons.append(f"{file.stem}: {reason}")
            else:
                good.append(built)
        return good, reasons

    @contextmanager
    def scratch(self, room: int) -> Iterator[Path]:
        """Make a folder inside the cache for a build that needs ``room`` bytes; it is gone afterwards.

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
                raise EngineError(
                    f"{self.folder} has {free / 1e9:.1f} GB free; an engine file needs about {room / 1e9:.1f} GB"
                )
            folder = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder))
        except OSError as error:
            raise EngineError(f"the engine cache at {self.folder} cannot be written: {error}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, file: Path, built: BuiltEngine) -> BuiltEngine:
        """Move a finished engine file to its place, durably; what was there is replaced.

        Raises:
            EngineError: the disk is full, or the cache cannot be written.
        """
        folder = self._of(built.graph)
        place = folder / f"{built.part}-{built.key[:16]}{SUFFIX}"
        description = place.with_suffix(".json")
        finished = replace(built, size=file.stat().st_size, sha256=sha256(file), path=None)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as f:
                os.fsync(f.fileno())
            new = file.with_suffix(".json")
            with new.open("w", encoding="utf-8") as out:
                out.write(to_json(finished))
                out.flush()
                os.fsync(out.fileno())
            with suppress(FileNotFoundError):
                description.unlink()  # it would describe another file for a moment
            file.replace(place)
            new.replace(description)
        except OSError as error:
            raise EngineError(f"the engine file cannot be kept in {folder}: {error}") from error
        return read_description(description)

    def drop(self, built: BuiltEngine) -> None:
        """Take an engine file away that did not open."""
        if built.path is not None:
            for file in (built.path.with_suffix(".json"), built.path):
                with suppress(OSError):
                    file.unlink()

    def timing(self, platform: Platform) -> Path:
        """Tell where timings of kernels are kept, which make the next build on this GPU faster."""
        text = "-".join([platform.gpu, *map(str, platform.capability), *map(str, platform.tensorrt), platform.machine])
        return self.folder / f"timing-{hashlib.sha256(text.encode()).hexdigest()[:16]}.bin"

    def _of(self, graph: str) -> Path:
        return self.folder / "engines" / graph[:16]


def _age(file: Path) -> float:
    with suppress(OSError):
        return -file.stat().st_mtime
    return 0.0
