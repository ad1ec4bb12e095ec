"""An export grows in a workspace, a folder beside where its bundle will be.

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

STATE = "state.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that go when there is room


class Workspace:
    """The folder in which ``out`` grows. ``key`` says all that the result depends on; another key starts from nothing.

    Raises:
        OutputError: ``out`` exists and is not an empty folder, or cannot be written.
    """

    def __init__(self, out: Path, key: Any) -> None:
        self.out = out = Path(os.path.abspath(out))
        if out == Path.cwd() or out.is_symlink():
            raise OutputError(f"cannot write {out}: it is a link, or the folder in which this runs; name a new one")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"cannot write {out}: it exists and is not an empty folder")
        self.root = out.parent / f".{out.name}.partial"
        self.bundle = self.root / "bundle"
        self._key = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        self._done: dict[str, Any] = {}

    def need(self, size: int) -> None:
        """Raise ``OutputError`` unless about ``size`` bytes are free, finished work included."""
        folder = next(p for p in self.out.absolute().parents if p.exists())
        there = sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file()) if self.root.exists() else 0
        if (free := shutil.disk_usage(folder).free + there) < size:
            raise OutputError(
                f"cannot write {self.out}: the export needs about {size / 1e9:.1f} GB on the way, "
                f"{free / 1e9:.1f} GB are free"
            )

    @contextlib.contextmanager
    def open(self) -> Iterator[Workspace]:
        """Make or find the folder. An interruption or a full disk leaves it, to go on; any other error removes it."""
        try:
            self._open()
            yield self
        except OutputError:
            raise
        except EdgediffError:
            self._removed()
            raise
        except KeyboardInterrupt:
            self._kept()
            raise
        except OSError as error:
            kept = self._kept() if error.errno in FULL else self._removed()
            raise OutputError(f"cannot write {self.out}: {error.strerror or error}{kept}") from error
        except Exception as error:  # torch and ONNX Runtime raise many kinds: for want of memory, of an operator
            self._removed()
            raise EngineError(f"the export failed: {type(error).__name__}: {error}") from error

    def _open(self) -> None:
        try:
            state = json.loads((self.root / STATE).read_text(encoding="utf-8"))
            self._done = state["done"] if state["key"] == self._key else {}
            for step, done in list(self._done.items()):
                if any(not self._whole(name, size) for name, size in done["files"].items()):
                    del self._done[step]
        except (OSError, ValueError, KeyError, TypeError):
            self._done = {}
        if not self._done:
            shutil.rmtree(self.root, ignore_errors=True)
        self.bundle.mkdir(parents=True, exist_ok=True)
        wanted = {Path(name) for done in self._done.values() for name in done["files"]} | {Path(STATE)}
        for path in [p for p in self.root.rglob("*") if p.is_file()]:
            if path.relative_to(self.root) not in wanted:  # a step that was cut off
                path.unlink()

    def _whole(self, name: str, size: int) -> bool:
        path = self.root / name
        return path.is_file() and path.stat().st_size == size

    def _removed(self) -> str:
        shutil.rmtree(self.root, ignore_errors=True)
        return ""

    def _kept(self) -> str:
        if not self._done:
            return self._removed()
        return f"; what is finished stays in {self.root}: run again to go on, or delete it"

    def result(self, step: str) -> Any:
        """Return what a finished step said of itself; None when it is still to do."""
        done = self._done.get(step)
        return None if done is None else done["facts"]

    def finish(self, step: str, facts: Any, files: list[Path]) -> None:
        """Note that a step is done and which files it wrote."""
        sizes = {str(p.relative_to(self.root)): p.stat().st_size for p in files}
        self._done[step] = {"facts": facts, "files": sizes}
        fresh = self.root / (STATE + ".new")
        fresh.write_text(json.dumps({"key": self._key, "done": self._done}), encoding="utf-8")
        fresh.replace(self.root / STATE)

    def publish(self) -> Path:
        """Put the finished bundle where it was asked for, at once."""
        assert (self.bundle / MANIFEST).is_file()
        self.bundle.chmod(0o755)
        if self.out.exists():
            self.out.rmdir()
        self.bundle.rename(self.out)
        shutil.rmtree(self.root, ignore_errors=True)
        return self.out
