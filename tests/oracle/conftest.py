"""The built-in model in fp32, as its source has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgediff_export.convert import export

from .cases import PIPELINE


@pytest.fixture(scope="session")
def emoji_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(PIPELINE, tmp_path_factory.mktemp("emoji") / "bundle", precision="fp32")
