"""An export grows in a workspace: a work folder in which every step notes what it wrote, until the result is put in
place.

It holds what is finished, so that an interrupted run goes on where it stopped, and it never looks like a bundle.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import EdgediffError, EngineError, OutputError
from edgediff.files import sync_file, sync_folder

from .manifest import DRAFT_MANIFEST
from .work_folder import BUNDLE, LAYOUT, WorkFolder

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that go when there is room


class Workspace:
    """The folder in which ``out`` grows. ``key`` says all that the result depends on; another key starts from nothing.

    Raises:
        OutputError: ``out`` exists and is not an empty folder, or cannot be written; something else lies where its work
            folder would.
    """

    def __init__(self, out: Path, key: Any) -> None:
        self.out = out = Path(os.path.abspath(out))
        self._folder = WorkFolder(out)
        self._check_out()
        self._folder.check()
        self.root = self._folder.root
        self.bundle, self.layout = self.root / BUNDLE, self.root / LAYOUT
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        self._done: dict[str, Any] = {}

    def _check_out(self) -> None:
        out = self.out
        if out == Path.cwd() or out.is_symlink():
            raise OutputError(f"cannot write {out}: it is a link, or the folder in which this runs; name a new one")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            self._folder.clear_published()
            raise OutputError(f"cannot write {out}: it exists and is not an empty folder")

    @property
    def doubt(self) -> str:
        """What is to be said of an open workspace on a disk without locks; an empty string elsewhere."""
        return "" if self._folder.sure else f"{self.root.parent} has no locks: start no second export to {self.out}"

    def need(self, size: int) -> None:
        """Raise ``OutputError`` unless about ``size`` bytes are free, finished work included."""
        folder = next(p for p in self.out.absolute().parents if p.exists())
        there = 0
        for path in self._folder.files():
            with contextlib.suppress(OSError):  # another export may be working here, which shows when this one begins
                there += (self.root / path).stat().st_size
        if (free := shutil.disk_usage(folder).free + there) < size:
            raise OutputError(
                f"cannot write {self.out}: the export needs about {size / 1e9:.1f} GB on the way, "
                f"{free / 1e9:.1f} GB are free"
            )

    @contextlib.contextmanager
    def open(self) -> Iterator[Workspace]:
        """Make or find the folder, and hold it. An interruption or a full disk leaves it, to go on; any other error
        removes it.

        Raises:
            OutputError: another export to ``out`` is running; ``out`` cannot be written.
        """
        try:
            with self._folder.held():
                yield from self._opened()
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write {self.out}: {error.strerror or error}") from error

    def _opened(self) -> Iterator[Workspace]:
        try:
            self._check_out()  # again: another export may have ended since
            self._start()
            yield self
        except OutputError:
            raise
        except EdgediffError:
            self._folder.clear()
            raise
        except KeyboardInterrupt:
            self._kept()
            raise
        except OSError as error:
            kept = ""
            if error.errno in FULL:
                kept = self._kept()
            else:
                self._folder.clear()
            raise OutputError(f"cannot write {self.out}: {error.strerror or error}{kept}") from error
        except Exception as error:  # torch and ONNX Runtime raise many kinds: for want of memory, of an operator
            self._folder.clear()
            raise EngineError(f"the export failed: {type(error).__name__}: {error}") from error

    def _start(self) -> None:
        """Find what earlier runs finished, and remove the rest."""
        state = self._folder.state() or {}
        self._done = {}
        if state.get("key") == self._key and isinstance(state.get("done"), dict):
            for step, done in state["done"].items():
                with contextlib.suppress(OSError, LookupError, TypeError, AttributeError):
                    if all((self.root / name).stat().st_size == size for name, size in done["files"].items()):
                        self._done[step] = {"facts": done["facts"], "files": done["files"]}
        wanted = {Path(name) for done in self._done.values() for name in done["files"]}
        if not self._done:
            self._folder.clear()
        self._folder.keep(wanted)  # what else is there is of a step that was cut off
        self._note()
        self.bundle.mkdir(exist_ok=True)

    def _note(self, **more: Any) -> None:
        self._folder.note({"key": self._key, "done": self._done, **more})

    def _kept(self) -> str:
        if not self._done:
            self._folder.clear()
            return ""
        return f"; what is finished stays in {self.root}: run again to go on, or delete it"

    def result(self, step: str) -> Any:
        """Return what a finished step said of itself; None when it is still to do."""
        done = self._done.get(step)
        return None if done is None else done["facts"]

    def finish(self, step: str, facts: Any, files: list[Path]) -> None:
        """Note that a step is done and which files it wrote, when they are on the disk."""
        for path in files:
            sync_file(path)
        sizes = {p.relative_to(self.root).as_posix(): p.stat().st_size for p in files}
        self._done[step] = {"facts": facts, "files": sizes}
        self._note()

    def publish(self, folder: Path | None = None) -> Path:
        """Put the finished bundle where it was asked for, at once; ``folder`` stands for it in another layout.

        Files and folders are on the disk before they have their names.
        """
        folder = self.bundle if folder is None else folder
        if folder == self.bundle:
            (folder / DRAFT_MANIFEST).rename(folder / MANIFEST)
        for inside, _, names in os.walk(folder, topdown=False):
            for name in names:
                sync_file(Path(inside, name))
            sync_folder(inside)
        self._note(published=True)
        if self.out.exists():
            self.out.rmdir()
        folder.rename(self.out)
        sync_folder(self.out.parent)
        self._folder.clear()
        return self.out
