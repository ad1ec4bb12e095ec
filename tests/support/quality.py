"""Measures whether a model draws what it is asked for, by CLIP and, independently, by plain pixels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgediff
from edgediff.engines.session import import_onnxruntime
from edgediff_export.reference_model.captions import phrase
from edgediff_export.reference_model.glyphs import COLOURS, Glyph, core_glyphs

DATA = Path(__file__).parents[2] / "benchmarks" / "data"  # written by edgediff_export.reference_model
CAPTION = "{a} on a {c} background"
BATCH = 20
Pictures = NDArray[np.uint8]  # (N, H, W, 3)


class Judge:
    """Ranks pictures against every glyph on a background, from files that need neither font nor torch."""

    def __init__(self) -> None:
        ort = import_onnxruntime()
        self.glyphs = core_glyphs()
        with np.load(DATA / "glyphs.npz") as data:
            self.atlas = data["rgba"].astype(np.float32)  # (N, 64, 64, 4), centred
        self.tower = ort.InferenceSession(str(DATA / "image_tower.onnx"), providers=["CPUExecutionProvider"])
        self._references: dict[str, tuple[Pictures, NDArray[np.float32]]] = {}

    def embed(self, pictures: Pictures) -> NDArray[np.float32]:
        """uint8 pictures -> unit CLIP image embeddings (N, 64)."""
        pixels = pictures.astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
        out: NDArray[np.float32] = self.tower.run(None, {"pixel_values": pixels})[0]
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def references(self, colour: str) -> tuple[Pictures, NDArray[np.float32]]:
        """Every glyph on that background, and their embeddings."""
        if colour not in self._references:
            alpha = self.atlas[..., 3:] / 255
            drawn = self.atlas[..., :3] * alpha + np.float32(COLOURS[colour]) * (1 - alpha)
            pictures = (drawn + 0.5).astype(np.uint8)
            self._references[colour] = pictures, self.embed(pictures)
        return self._references[colour]

    def judge(self, picture: Pictures, glyph: int, colour: str) -> dict[str, Any]:
        """Of one picture (H, W, 3): the background named right, and the asked glyph's rank (0 is best) both ways."""
        pictures, embeddings = self.references(colour)
        ring = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3),
                               picture[:, :2].reshape(-1, 3), picture[:, -2:].reshape(-1, 3)])  # fmt: skip
        median = np.median(ring, axis=0)
        nearest = min(COLOURS, key=lambda c: float(np.square(median - np.float64(COLOURS[c])).sum()))
        similarity = embeddings @ self.embed(picture[None])[0]
        distance = np.square(pictures.astype(np.float32) - picture).sum((1, 2, 3))
        return {
            "background": nearest == colour,
            "clip_rank": int((similarity > similarity[glyph]).sum()),
            "pixel_rank": int((distance < distance[glyph]).sum()),
        }


def prompt(glyph: Glyph, colour: str) -> str:
    return phrase(CAPTION, glyph.names[0], glyph.plural, colour)


def triples(count: int, glyphs: list[Glyph]) -> list[tuple[int, str, int]]:
    """(glyph, colour, seed), the same every time."""
    rng = random.Random(0)
    return [(rng.randrange(len(glyphs)), rng.choice(list(COLOURS)), seed) for seed in range(count)]


def draw(pipe: edgediff.Pipeline, prompts: list[str], seeds: list[int], **arguments: Any) -> Pictures:
    """Pictures of the prompts, in batches."""
    return np.concatenate(
        [
            pipe(prompts[k : k + BATCH], seed=seeds[k : k + BATCH], output_type="np", **arguments).images
            for k in range(0, len(prompts), BATCH)
        ]
    )


def measure(pipe: edgediff.Pipeline, judge: Judge, count: int, **arguments: Any) -> dict[str, float]:
    """Shares over ``count`` triples."""
    asked = triples(count, judge.glyphs)
    pictures = draw(pipe, [prompt(judge.glyphs[g], c) for g, c, _ in asked], [s for _, _, s in asked], **arguments)
    found = [judge.judge(p, g, c) for p, (g, c, _) in zip(pictures, asked, strict=True)]
    return {
        "background": sum(f["background"] for f in found) / count,
        "clip_top1": sum(f["clip_rank"] < 1 for f in found) / count,
        "clip_top5": sum(f["clip_rank"] < 5 for f in found) / count,
        "pixel_top1": sum(f["pixel_rank"] < 1 for f in found) / count,
        "pixel_top5": sum(f["pixel_rank"] < 5 for f in found) / count,
    }
