"""CUDA's libraries of pip's packages, which ONNX Runtime looks for beside its own folder alone."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = "nvidia"  # of every such package, wherever pip put it


def load_missing(ort: Any) -> None:
    """Load what ``preload_dlls`` did not find, from every folder ``nvidia`` on Python's path.

    The list of libraries, with their versions and places, is ONNX Runtime's own. A library that is loaded, or that the
    system has, is left as it is.
    """
    if not getattr(ort, "cuda_version", "") or not hasattr(ort, "_get_nvidia_dll_paths"):
        return  # built without CUDA, or too old to look for packages
    folders = [folder for entry in sys.path if (folder := Path(entry) / FOLDER).is_dir()]
    for _, *inside in ort._get_nvidia_dll_paths(os.name == "nt"):
        if folders and not _loads(inside[-1]):
            any(_loads(str(file)) for folder in folders if (file := folder.joinpath(*inside)).is_file())


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
