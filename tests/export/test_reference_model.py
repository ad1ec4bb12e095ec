"""The training script's parts: captions, tokenizer, the folded latent scale, resuming; and every stage in small."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from edgediff_export.reference_model import config as configs
from edgediff_export.reference_model import trainer
from edgediff_export.reference_model.captions import all_captions, caption, phrase
from edgediff_export.reference_model.glyphs import FONT_PATHS, core_glyphs
from edgediff_export.reference_model.models import SCHEDULE, build_scheduler, build_vae
from edgediff_export.reference_model.tokenizer import train_tokenizer
from edgediff_export.reference_model.train_vae import fold_scale

needs_font = pytest.mark.skipif(
    not any(Path(p).exists() for p in FONT_PATHS), reason="Noto Color Emoji is not installed (fonts-noto-color-emoji)"
)


def test_captions() -> None:
    glyphs = {g.names[0]: g for g in core_glyphs()}
    assert len(glyphs) >= 100
    apple, grapes = glyphs["red apple"], glyphs["grapes"]
    assert phrase("{a} on a {c} background", "red apple", apple.plural, "blue") == "a red apple on a blue background"
    assert phrase("{a}", "grapes", grapes.plural, "") == "grapes"
    assert phrase("{a}", "owl", False, "") == "an owl"
    known = set(all_captions(list(glyphs.values())))
    rng = random.Random(0)
    assert {caption(apple, "red", rng) for _ in range(50)} <= known


def test_tokenizer_takes_any_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(all_captions(core_glyphs())[:3000], 800, 32, tmp_path)
    assert tokenizer.tokenize("A Red APPLE") == ["a</w>", "red</w>", "apple</w>"]
    for text in ("naïve zebra", "日本語 🍕", "x^2 + 1"):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_fold_scale_changes_latents_and_not_pictures() -> None:
    config = configs.PRESETS["smoke"]
    vae = build_vae(config).eval()
    x = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = vae.encode(x).latent_dist
        picture = vae.decode(before.mean).sample
        fold_scale(vae, before.mean)
        after = vae.encode(x).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, picture, atol=1e-4, rtol=1e-4)
    flat = after.mean.movedim(1, 0).flatten(1)
    torch.testing.assert_close(flat.mean(1), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(1), torch.ones(16), atol=1e-3, rtol=0)
    ratio = before.mean.movedim(1, 0).flatten(1).std(1)[:, None, None]
    torch.testing.assert_close(after.std, before.std / ratio, atol=1e-4, rtol=1e-3)


def test_schedule_ends_in_noise() -> None:
    assert build_scheduler().alphas_cumprod[-1] < 1e-4
    assert SCHEDULE["prediction_type"] == "v_prediction"


def fit_line(folder: Path, fail_at: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        if step == fail_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}

    state = trainer.fit("line", folder, {"model": model}, loss_at, steps=20, lr=0.05, ema=0.9)
    return {**state["model"], **{f"ema.{k}": v for k, v in state["ema"]["model"].items()}}


def test_an_interrupted_run_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 4)
    whole = fit_line(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "parts", fail_at=11)
    resumed = fit_line(tmp_path / "parts")
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=0)
    assert not torch.equal(whole["weight"], whole["ema.weight"])


def test_learning_rate() -> None:
    rates = [trainer.learning_rate(step, 1000, 2.0) for step in range(1000)]
    assert max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) in (19, 20)
    assert rates[-1] < 1e-4


def test_config_from_json(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    mine = dataclasses.replace(configs.PRESETS["core64"], name="mine", vae_channels=(8, 16))
    path.write_text(mine.to_json(), encoding="utf-8")
    assert configs.load(str(path)) == mine
    with pytest.raises(ValueError, match="no config 'tiny'; choose from core64"):
        configs.load("tiny")


@needs_font
def test_every_stage(tmp_path: Path) -> None:
    from edgediff.engines.session import import_onnxruntime
    from edgediff_export.convert import export
    from edgediff_export.reference_model.save import save
    from edgediff_export.reference_model.train_clip import train_clip
    from edgediff_export.reference_model.train_unet import train_unet
    from edgediff_export.reference_model.train_vae import train_vae

    config, glyphs = configs.PRESETS["smoke"], core_glyphs()
    train_vae(config, glyphs, tmp_path)
    train_clip(config, glyphs, tmp_path)
    train_unet(config, glyphs, tmp_path)
    import edgediff

    pipe = edgediff.load(export(save(config, glyphs, tmp_path), tmp_path / "bundle"))
    assert pipe("pizza", num_inference_steps=2, seed=0, output_type="np").images.shape == (1, 64, 64, 3)
    judge = import_onnxruntime().InferenceSession(str(tmp_path / "judge" / "image_tower.onnx"))
    (seen,) = judge.run(None, {"pixel_values": np.zeros((2, 3, config.image_size, config.image_size), np.float32)})
    assert len(seen) == 2
    assert np.isfinite(seen).all()
    with np.load(tmp_path / "judge" / "glyphs.npz") as data:
        assert data["rgba"].shape == (len(glyphs), 64, 64, 4)


@needs_font
def test_the_whole_set_is_larger_and_visible() -> None:
    from edgediff_export.reference_model.glyphs import all_glyphs

    glyphs = all_glyphs()
    assert len(glyphs) > 700
    assert len({g.char for g in glyphs}) == len(glyphs)
    assert {g.char for g in core_glyphs()} <= {g.char for g in glyphs}
