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
WITH_TRANSFORMERS_5 = ("0.36", "0.43")  # diffusers before cannot be imported with it


def check_versions() -> None:
    """Raise ``EngineError`` where an installed library is outside its range; one that is missing shows at import."""
    found = {name: text for name in RANGES if (text := _installed(name))}
    ranges = dict(RANGES)
    if _numbers(found.get("transformers", "0")) >= (5,):
        ranges["diffusers"] = WITH_TRANSFORMERS_5
    if wrong := [name for name, text in found.items() if not _within(text, *ranges[name])]:
        named = " and ".join(f"{name} is {found[name]}" for name in wrong)
        beside = f" beside transformers {found['transformers']}" if ranges != RANGES and "diffusers" in wrong else ""
        asked = " ".join(f"'{requirement(name, *ranges[name])}'" for name in wrong)
        raise EngineError(f"{named}{beside}, which the export stage does not run with; run: pip install {asked}")


def requirement(name: str, first: str, end: str | None) -> str:
    """Write a library's range as pip takes it."""
    return f"{name}>={first}" + (f",<{end}" if end else "")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _within(found: str, first: str, end: str | None) -> bool:
    return _numbers(first) <= _numbers(found) and (end is None or _numbers(found) < _numbers(end))


def _numbers(text: str) -> tuple[int, ...]:
    """``4.57.6+cpu`` -> (4, 57, 6); releases before a release count as it."""
    return tuple(int(part) for part in re.match(r"\d*(\.\d+)*", text)[0].split(".") if part)  # type: ignore[index]
