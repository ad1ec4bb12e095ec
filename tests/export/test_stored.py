"""The bundles stored in tests/data, with which the runtime is tested without torch: the exporter's, to the byte."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.tiny import DATA, STORED, export_tiny

# Of the machine and the versions that exported: everything else must be equal.
OF_THE_MACHINE = ("parity", "preview", "provenance")


def manifest(root: Path) -> dict[str, Any]:
    """What bundle.json says, but for what another machine or release measures otherwise."""
    data = dict(json.loads((root / "bundle.json").read_text(encoding="utf-8")))
    for name in OF_THE_MACHINE:
        del data[name]
    del data["golden"]["file"]["sha256"]
    return data


@pytest.mark.skipif(platform.machine() != "x86_64", reason="torch's seeded weights differ in their last digits here")
@pytest.mark.parametrize("name", STORED)
def test_the_exporter_gives_the_stored_bundle(tiny_source: Path, tmp_path: Path, name: str) -> None:
    """If it gives another on purpose: ``python -m tests.support.tiny``."""
    kept, made = DATA / name, export_tiny(tiny_source, tmp_path / name, name)
    assert manifest(made) == manifest(kept)
    assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in kept.iterdir())
    for path in kept.iterdir():
        if path.name == "golden.safetensors":
            theirs, ours = load_file(path), load_file(made / path.name)
            assert theirs.keys() == ours.keys()
            for key, value in theirs.items():
                level = 1 if value.dtype == np.uint8 else 1e-4
                np.testing.assert_allclose(ours[key].astype(float), value.astype(float), rtol=1e-4, atol=level)
        elif path.name != "bundle.json":
            assert (made / path.name).read_bytes() == path.read_bytes(), path.name
