"""The engine cache is a folder of engine files, each beside its description.

The description is written last, under its final name at once, so an engine file without one was never finished and is
not seen.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...bundle.manifest import sha256
from ...cache_folder import open_to_all
from ...errors import EngineError, printable
from ...files import sync_file, sync_folder
from ...scratch import clear_dead, scratch_folder
from .engine_file import SUFFIX, BuiltEngine, Platform, read_description, to_json
from .source import EngineSource

NO_ENGINE_FILE = "no engine file was built; run: edgediff build"
BUILDING = ".building-"  # begins the names of folders in which a build works


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
            except OSError as error:
                reasons.append(f"{printable(file.name)}: the description cannot be read ({error.strerror})")
                continue
            except ValueError as error:
                reasons.append(f"{printable(file.name)}: the description cannot be read ({printable(str(error))})")
                continue
            if reason := self._who_else_writes(file, built):
                reasons.append(f"{file.stem}: {reason}")
            elif (built.part, built.graph) != (part, source.graph):
                reasons.append(f"{file.stem}: describes an engine file of another part")
            elif built.weights != source.weights:
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
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if reason := _open_to_all(self.folder):
                    raise EngineError(f"the engine cache: {reason}")
                clear_dead(self.folder, BUILDING)  # as large as an engine file
                free = shutil.disk_usage(self.folder).free
                if free < room:
                    raise EngineError(
                        f"{self.folder} has {free / 1e9:.1f} GB free; an engine file needs about {room / 1e9:.1f} GB"
                    )
                folder = stack.enter_context(scratch_folder(self.folder, BUILDING))
            except OSError as error:
                raise EngineError(f"the engine cache at {self.folder} cannot be written: {error}") from error
            yield folder

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
            new = file.with_suffix(".json")
            new.write_text(to_json(finished), encoding="utf-8")
            for path in (file, new, folder, folder.parent):  # what all may write is passed over when it is looked for
                if _open_to_all(path):
                    path.chmod(path.stat().st_mode & ~stat.S_IWOTH)
            sync_file(file)
            sync_file(new)
            with suppress(FileNotFoundError):
                description.unlink()  # it would describe another file for a moment
            file.replace(place)
            new.replace(description)
            sync_folder(folder)
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

    def _who_else_writes(self, file: Path, built: BuiltEngine) -> str:
        """Tell why an engine file may be a stranger's, or an empty string. Engine files carry code: what every user of
        this machine may write is not opened. A group's and another user's are, which is how caches are shared.
        """
        assert built.path is not None
        for path in (built.path, file, file.parent, file.parents[1], self.folder):
            try:
                if reason := _open_to_all(path):
                    return reason
            except OSError as error:
                return f"cannot be read: {error}"
        return ""

    def _of(self, graph: str) -> Path:
        return self.folder / "engines" / graph[:16]


def _open_to_all(path: Path) -> str:
    """Tell that all users of this machine may write a file or folder, or an empty string.

    Raises:
        OSError: it is not there.
    """
    if not open_to_all(path):
        return ""
    return f"every user of this machine can write {path}, and engine files carry code; run: chmod o-w {path}"


def _age(file: Path) -> float:
    with suppress(OSError):
        return -file.stat().st_mtime
    return 0.0
