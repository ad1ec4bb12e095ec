"""Files of a folder that only stand for others (Git-LFS pointers, pages, empty and cut ones) are named at once."""

from __future__ import annotations

from pathlib import Path

from edgediff.errors import BundleError
from edgediff.looks import stand_in


def check_files(root: Path, components: list[str]) -> None:
    """Raise ``BundleError`` for the first file of these components that is not what its name says."""
    for component in components:
        folder = root / component
        files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
        # Where both are there, the .bin files may have been left out of a clone.
        weights = [p for p in files if p.suffix == ".safetensors"] or [p for p in files if p.suffix == ".bin"]
        for path in (*weights, *(p for p in files if p.suffix in (".json", ".txt"))):
            if wrong := stand_in(path):
                raise BundleError(f"{path} is {wrong}")
