"""edgediff against diffusers: tables alone, and whole runs with the same weights and seed."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from benchmarks.oracle import PIPELINE, SCHEDULERS, SKIPPED, comparable, latents_error, table_error
from edgediff.levels import BETAS, PREDICTIONS, SPACINGS
from edgediff_export.convert import export

CASES = [
    case for case in product(SCHEDULERS, SPACINGS, PREDICTIONS, BETAS) if case[:2] not in SKIPPED and comparable(*case)
]


@pytest.mark.parametrize(("sampler", "spacing", "prediction", "betas"), CASES)
def test_tables(sampler: str, spacing: str, prediction: str, betas: str) -> None:
    assert table_error(sampler, spacing, prediction, betas) < 2e-6


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_stable_diffusion_shape(tiny_source: Path, tiny_bundle: Path, sampler: str) -> None:
    """Epsilon, leading spacing, steps_offset 1, 77 tokens: the way of SD 1.5."""
    assert latents_error(tiny_source, tiny_bundle, sampler) < 1e-4


@pytest.fixture(scope="module")
def emoji_fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(PIPELINE, tmp_path_factory.mktemp("emoji") / "bundle", precision="fp32")


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_built_in_model(emoji_fp32: Path, sampler: str) -> None:
    assert latents_error(PIPELINE, emoji_fp32, sampler) < 1e-3
