"""A bundle's manifest, changed on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = root / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    return root
