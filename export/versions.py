"""The libraries that the export stage runs with; another version is refused by name before any work."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from edgediff.errors import EngineError

# The first release that works, and the first of which nothing is known; pyproject.toml says the same.
RANGES: dict[str, tuple[str, str | None]] = {
    "torch": ("2.6", None),
    "diffusers": ("0.35", "0.43"),
    "transformers": ("4.50", "6"),
    "accelerate": ("1.0", None),
    "onnx": ("1.17", None),
}


def check_versions() -> None:
    """Raise ``EngineError`` where an installed library is outside its range; one that is missing shows at import."""
    wrong = {}
    for name in RANGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if not _within(found, *RANGES[name]):
            wrong[name] = found
    if wrong:
        named = " and ".join(f"{name} is {found}" for name, found in wrong.items())
        asked = " ".join(f"'{requirement(name)}'" for name in wrong)
        raise EngineError(f"{named}, which the export stage does not run with; run: pip install {asked}")


def requirement(name: str) -> str:
    """Write a library's range as pip takes it."""
    first, end = RANGES[name]
    return f"{name}>={first}" + (f",<{end}" if end else "")


def _within(found: str, first: str, end: str | None) -> bool:
    return _numbers(first) <= _numbers(found) and (end is None or _numbers(found) < _numbers(end))


def _numbers(text: str) -> tuple[int, ...]:
    """``4.57.6+cpu`` -> (4, 57, 6); releases before a release count as it."""
    return tuple(int(part) for part in re.match(r"\d*(\.\d+)*", text)[0].split(".") if part)  # type: ignore[index]
