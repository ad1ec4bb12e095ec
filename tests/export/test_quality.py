"""The built-in model draws what it is asked for (``python -m benchmarks.quality`` measures more of it)."""

from __future__ import annotations

import numpy as np
import pytest

import edgediff

from ..support.quality import Judge, measure

COUNT = 60


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_the_judge_knows_its_glyphs(judge: Judge) -> None:
    """Drawn glyphs score full marks, and a blank background does no better than chance: the measure can fail."""
    for colour in ("blue", "white"):
        pictures, _ = judge.references(colour)
        for glyph in range(0, len(judge.glyphs), 7):
            assert judge.judge(pictures[glyph], glyph, colour) == {"background": True, "clip_rank": 0, "pixel_rank": 0}
    other, _ = judge.references("red")
    assert not judge.judge(other[0], 0, "green")["background"]
    assert judge.judge(pictures[3], 60, "white")["clip_rank"] > 0
    blank = np.full_like(pictures[0], 245)
    assert np.mean([judge.judge(blank, g, "white")["clip_rank"] for g in range(0, 112, 7)]) > 20
    assert np.mean([judge.judge(blank, g, "white")["pixel_rank"] for g in range(0, 112, 7)]) > 20


def test_quality_and_guidance(emoji: edgediff.Pipeline, judge: Judge) -> None:
    guided = measure(emoji, judge, COUNT)
    assert guided["background"] >= 0.95
    assert guided["clip_top1"] >= 0.75
    assert guided["clip_top5"] >= 0.92
    assert guided["pixel_top5"] >= 0.70
    plain = measure(emoji, judge, COUNT, guidance_scale=1.0)
    assert plain["clip_top1"] + plain["pixel_top1"] <= guided["clip_top1"] + guided["pixel_top1"]


def test_preview_heads_to_the_picture(emoji: edgediff.Pipeline) -> None:
    steps = list(emoji.stream("a red apple on a blue background", seed=0))
    final = np.asarray(steps[-1].result().images[0], np.float32)
    late, early = (np.asarray(steps[k].preview()[0], np.float32) for k in (-1, 0))
    assert late.shape == final.shape
    assert np.abs(late - final).mean() < np.abs(early - final).mean()
    corner = np.asarray(final[:4, :4]).mean((0, 1))
    assert corner.argmax() == 2  # blue
