"""The trained parts are saved in fp16 as a diffusers folder (``pipeline/``), the judge's files and a card beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from ..onnx_graph.binding import binder
from ..onnx_graph.graph import write_graph
from ..onnx_graph.trace import trace
from ..precision.quantize import store_fp16
from ..sources.clip_names import renamed
from ..sources.mapped_weights import of_tensor
from .config import Config
from .glyphs import Glyph, sized
from .models import build_scheduler, build_unet
from .train_clip import trained_clip
from .train_unet import scaled_vae


class ImageTower(torch.nn.Module):
    """Gives the embeddings of pictures alone."""

    def __init__(self, model: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(pixel_values=pixel_values).image_embeds
        return out


def save_judge(config: Config, glyphs: list[Glyph], image: CLIPVisionModelWithProjection, folder: Path) -> None:
    """Write ``image_tower.onnx`` and ``glyphs.npz``: they score pictures without torch and without the font."""
    folder.mkdir(parents=True, exist_ok=True)
    size, longest = config.image_size, (config.glyph_min + config.glyph_max) // 2
    atlas = np.zeros((len(glyphs), size, size, 4), np.uint8)
    for k, glyph in enumerate(glyphs):
        drawn = sized(glyph.char, longest)
        h, w = drawn.shape[:2]
        top, left = (size - h) // 2, (size - w) // 2
        atlas[k, top : top + h, left : left + w] = drawn
    np.savez_compressed(folder / "glyphs.npz", rgba=atlas)
    image.config._attn_implementation = "eager"
    axes = {"pixel_values": {0: "batch"}, "image_embeds": {0: "batch"}}
    example = {"pixel_values": torch.zeros(1, 3, size, size)}
    bind = binder("image tower", {name: of_tensor(p) for name, p in image.named_parameters()})
    graph = trace(ImageTower(image.eval()), example, ("image_embeds",), axes, bind)
    store_fp16(graph)
    write_graph(graph, folder / "image_tower.onnx")


def save(config: Config, glyphs: list[Glyph], folder: Path) -> Path:
    """Write ``pipeline`` (save_pretrained), ``judge`` (for ``tests/support/quality.py``) and ``card.json``."""
    tokenizer, text, image = trained_clip(config, glyphs, folder)
    vae, _, _ = scaled_vae(config, glyphs, folder)
    unet = build_unet(config)
    state = torch.load(folder / "unet.pt", weights_only=True)
    unet.load_state_dict(state["ema"]["unet"])
    encoder = CLIPTextModel(text.config)
    own = encoder.state_dict()
    encoder.load_state_dict({k: v for k, v in renamed(text.state_dict(), own).items() if k in own})
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    out = folder / "pipeline"
    # fp16 is what ships, so it is also what is kept: the bundle's weights equal these exactly.
    pipeline.to(torch.float16).save_pretrained(out)
    save_judge(config, glyphs, image, folder / "judge")
    card = {"config": json.loads(config.to_json()), "objects": len(glyphs), "torch": torch.__version__, "stages": {}}
    for stage in ("vae", "clip", "unet"):
        lines = (folder / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        card["stages"][stage] = json.loads(lines[-1])
    (folder / "card.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
    return out
