"""A trained model is put where it ships: the bundle in the package, its fp16 source and its judge in the repository."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from ..convert import export
from .config import Config
from .glyphs import COLOURS, Glyph
from .train_vae import random_picture, to_tensor

LICENCE = "OFL-1.1 (trained on glyphs of Noto Color Emoji, Copyright Google Inc.)"
DEFAULTS: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 2.0, "sampler": "dpmpp_2m"}


def publish(config: Config, glyphs: list[Glyph], folder: Path, repository: Path) -> None:
    """Copy ``pipeline``, ``judge`` and ``card.json`` from ``folder``, and export the bundle, into ``repository``."""
    home = repository / "export" / "reference_model"
    fresh = _bundle(config, glyphs, folder, home / "LICENSE.model", folder)
    # Nothing in the repository changes before everything is there to be copied.
    _replace(folder / "pipeline", home / "pipeline")
    _replace(folder / "judge", repository / "benchmarks" / "data")
    _replace(fresh, repository / "edgediff" / "models" / "emoji")
    shutil.copy(folder / "card.json", home / "card.json")


def export_again(config: Config, glyphs: list[Glyph], folder: Path, repository: Path) -> None:
    """Export the bundle from the pipeline that lies in ``repository``, after the exporter has changed."""
    home = repository / "export" / "reference_model"
    _replace(
        _bundle(config, glyphs, home, home / "LICENSE.model", folder), repository / "edgediff" / "models" / "emoji"
    )


def _bundle(config: Config, glyphs: list[Glyph], source: Path, notice: Path, folder: Path) -> Path:
    """Export the bundle of ``source``'s pipeline and card into ``folder``."""
    card = json.loads((source / "card.json").read_text(encoding="utf-8"))
    rng = random.Random(5)
    shown = [random_picture(config, rng.choice(glyphs), rng.choice(list(COLOURS)), rng) for _ in range(256)]
    fresh = folder / "bundle"
    shutil.rmtree(fresh, ignore_errors=True)
    export(
        source / "pipeline",
        fresh,
        name=f"edgediff-emoji-{config.name}",
        defaults=DEFAULTS,
        licence=LICENCE,
        provenance={"trained_by": "edgediff_export.reference_model", "config": card["config"], "seed": config.seed},
        pictures=to_tensor(shown),
    )
    shutil.copy(notice, fresh / "LICENSE")
    return fresh


def _replace(source: Path, target: Path) -> None:
    """Copy a folder beside ``target``, then put it in its place."""
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)
