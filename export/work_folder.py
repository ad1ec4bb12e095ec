"""A work folder lies beside what is made in it. One export at a time holds it, and nothing is deleted in it but what
an export wrote: no link, and no folder without a state of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from edgediff.errors import OutputError
from edgediff.file_lock import FileLock
from edgediff.files import read_regular, sync_file, sync_folder

LOCK, STATE, FRESH = ".edgediff-lock", "state.json", "state.json.new"  # the lock is there first, and goes last
WRITER = "edgediff export"  # says in the state who wrote it
# The folders inside, and the files that are written into them.
BUNDLE, TRACED, CASES, DRAFT, LAYOUT = "bundle", "traced", "cases", "draft", "layout"
WRITTEN = {
    **dict.fromkeys((BUNDLE, TRACED, CASES, DRAFT), re.compile(r".*\.(onnx|data|json|safetensors)")),
    LAYOUT: re.compile(r".*\.(onnx|data|json|txt|jinja)"),
}
STATE_LIMIT = 256 << 20  # bytes
TRIES = 100


class WorkFolder:
    """The work folder of one ``out``.

    Attributes:
        root: where it lies.
        sure: False while it is held on a disk without locks.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.root = out, out.parent / f".{out.name}.partial"
        self.sure = True

    def check(self) -> None:
        """Raise ``OutputError`` where something else lies in its place. Another export may be working in it."""
        if self.root.is_symlink():
            raise self._refused("is a link, and an export removes what is there; delete the link")
        if not os.path.lexists(self.root):
            return
        if not self.root.is_dir():
            raise self._refused("is no folder; move it away")
        try:
            there = os.listdir(self.root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused(f"cannot be read ({error.strerror}); move it away") from error
        if there and LOCK not in there:
            raise self._refused(f"holds {min(there)!r} and no {LOCK}, so that no export made it; move it away")

    def _check_held(self) -> None:
        """Raise ``OutputError`` where it holds what no export wrote."""
        try:
            strange = next((path for path, is_ours in _walk(self.root) if not is_ours), None)
        except (OSError, RecursionError) as error:
            raise self._refused("cannot be read to its end, so that no export made it; move it away") from error
        if strange is not None:
            raise self._refused(f"holds {strange.as_posix()!r}, which no export wrote; move that away")
        if set(os.listdir(self.root)) - {LOCK, FRESH} and self.state() is None:
            raise self._refused(f"holds no {STATE} of an export, so it is not known whose it is; move it away")

    def _refused(self, why: str) -> OutputError:
        return OutputError(
            f"cannot write {self.out}: {self.root}, the folder in which it grows, {why}, or name another"
        )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make or find the folder and hold it; it is gone afterwards, unless there is work in it.

        Raises:
            OutputError: another export holds it, or it is somebody else's.
        """
        lock = self._lock()
        try:
            self._check_held()
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.release(remove=os.listdir(self.root) == [LOCK])
                self.root.rmdir()

    def clear_published(self) -> None:
        """Remove it where its work was put in place, and the export was killed before it could."""
        with contextlib.suppress(OSError):
            if not self.root.is_symlink() and (self.state() or {}).get("published"):
                with self.held():
                    self.clear()

    def _lock(self) -> FileLock:
        for _ in range(TRIES):
            self.check()
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock = FileLock.take(self.root / LOCK)
            except FileNotFoundError:  # another export ended, and took its folder away
                continue
            except OSError as error:
                raise self._refused(f"cannot be locked by {LOCK} ({error.strerror}); move it away") from error
            if lock is None:
                raise OutputError(f"cannot write {self.out}: another export to it is running; name another")
            self.sure = lock.sure
            return lock
        raise OutputError(f"cannot write {self.out}: {self.root} does not stay")

    def state(self) -> dict[str, Any] | None:
        """Read what was noted; None where there is nothing of an export's."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            state = json.loads(read_regular(self.root / STATE, STATE_LIMIT))
            if isinstance(state, dict) and state.get("by") == WRITER:
                return state
        return None

    def note(self, state: dict[str, Any]) -> None:
        """Note the state, durably."""
        fresh = self.root / FRESH
        fresh.write_text(json.dumps({"by": WRITER, **state}), encoding="utf-8")
        sync_file(fresh)
        fresh.replace(self.root / STATE)
        sync_folder(self.root)

    def files(self) -> list[Path]:
        """List the files in its folders, relative to it; links are not followed."""
        if not self.root.is_dir():
            return []
        return [path for path, _ in _walk(self.root) if len(path.parts) > 1 and (self.root / path).is_file()]

    def clear(self) -> None:
        """Remove what exports wrote; the state last, so that what a kill leaves can be told for what it is."""
        self.keep(frozenset())
        for name in (FRESH, STATE):
            with contextlib.suppress(OSError):
                (self.root / name).unlink()

    def keep(self, wanted: Collection[Path]) -> None:
        """Remove every file in its folders but these, and what is not ours; folders that are empty then go, too."""
        folders = [name for name in WRITTEN if (self.root / name).is_dir() and not (self.root / name).is_symlink()]
        for path, is_ours in list(_walk(self.root)):
            if is_ours and path.parts[0] in folders and path not in wanted:
                with contextlib.suppress(OSError):
                    (self.root / path).unlink()
        for name in folders:
            for folder, _, _ in os.walk(self.root / name, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def _walk(root: Path, below: Path = Path()) -> Iterator[tuple[Path, bool]]:
    """Yield everything below a folder that is no folder itself, relative to it, and whether an export wrote it."""
    for entry in sorted(os.scandir(root / below), key=lambda entry: entry.name):
        path = below / entry.name
        if not path.parent.parts:
            known = entry.name in WRITTEN if entry.is_dir(follow_symlinks=False) else entry.name in (LOCK, STATE, FRESH)
        else:
            known = entry.is_dir(follow_symlinks=False) or WRITTEN[path.parts[0]].fullmatch(entry.name) is not None
        if known and entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path)
        else:
            yield path, known and entry.is_file(follow_symlinks=False)
