"""The cache folder holds what was made for this machine: TensorRT's engine files, and machine code of the kernels."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from .errors import EngineError

CACHE_VARIABLE = "EDGEDIFF_CACHE"


def default_cache_folder() -> Path:
    """Return the folder: ``$EDGEDIFF_CACHE``, or edgediff's own in the user's cache folder.

    Raises:
        EngineError: the user has no home.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edgediff"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "edgediff"
        common = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one says nothing, by its specification
        return (common if common.is_absolute() else Path.home() / ".cache") / "edgediff"
    except RuntimeError as error:
        raise EngineError(
            "there is no folder for what is built for this machine, since this user has no home; name one by "
            f"{CACHE_VARIABLE}, engine_cache= or --engine-cache"
        ) from error


def open_to_all(path: Path) -> bool:
    """Tell whether all users of this machine may write a file or folder. Windows keeps that elsewhere: False.

    Raises:
        OSError: it is not there.
    """
    return sys.platform != "win32" and bool(path.stat().st_mode & stat.S_IWOTH)
