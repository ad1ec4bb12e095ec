"""A stranger's folder is read inside itself alone, wherever its links lead.

One way out is known and good: a hub's cache keeps ``snapshots/REVISION/FILE`` as links to ``blobs/HASH`` beside them,
and the folder that is opened may be the revision or one inside it.
"""

from __future__ import annotations

from pathlib import Path

from .errors import BundleError, shown

SNAPSHOTS, BLOBS = "snapshots", "blobs"  # folders of a hub's cache


def confined(root: Path, path: Path) -> Path:
    """``path``, after its links were followed and it was found to stay in ``root``, which may be a link itself.

    Where ``root`` lies in a folder named ``snapshots``, at any depth, links may also end in the folder ``blobs`` beside
    that one. The path need not exist.

    Raises:
        BundleError: it leaves, or its links lead in a circle.
        OSError: a folder on the way cannot be read.
    """
    try:
        home, end = root.resolve(), path.resolve()
    except RecursionError:  # Python's stack ended; no RuntimeError of links
        raise
    except (RuntimeError, ValueError) as error:  # a circle of links (before Python 3.13), a NUL in a name
        raise BundleError(f"{shown(str(path))} cannot be followed: {error}") from error
    hub = next((folder.parent for folder in home.parents if folder.name == SNAPSHOTS), None)
    allowed = [home] if hub is None else [home, hub / BLOBS]
    if not any(end.is_relative_to(folder) for folder in allowed):
        raise BundleError(f"{shown(str(path))} is a link out of {root}, to {shown(str(end))}; files lie inside")
    return path


def stays(root: Path, path: Path) -> bool:
    """Whether ``confined`` would let it pass."""
    try:
        confined(root, path)
    except (BundleError, OSError):
        return False
    return True
