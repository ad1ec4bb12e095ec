"""What depends on width: first blocks as wide as Stable Diffusion's and SDXL's, with weights that are exact in fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgediff.bundle.reading import read_bundle
from edgediff_export.convert import export

from ..support import families

WIDTH, TEXT = 320, 64  # channels of the first block; of the texts, which are free
ROUNDING = 1e-5  # of float32; a table of sinusoids in fp16 costs 4e-3

pytestmark = pytest.mark.slow


def rounded(module: Any) -> Any:
    return module.half().float()


def wide_pipeline(large: bool) -> Any:
    """Stable Diffusion or SDXL with few layers; time and sizes are embedded as widely as theirs."""
    blocks: dict[str, Any] = {"block_out_channels": (WIDTH, WIDTH), "norm_num_groups": 32, "attention_head_dim": 8}
    pipe = families.pipeline("sdxl" if large else "sd15", 4)
    if large:
        blocks |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2 * TEXT + 6 * 256,
            "use_linear_projection": True,
        }
    pipe.register_modules(unet=families.unet(WIDTH, 3 * TEXT if large else TEXT, **blocks))
    for name in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if large else [])):
        rounded(getattr(pipe, name))
    return pipe


@pytest.mark.parametrize("large", [False, True])
def test_weights_in_fp16_cost_nothing_where_they_are_exact(tmp_path: Path, large: bool) -> None:
    wide_pipeline(large).save_pretrained(tmp_path / "source")
    found = read_bundle(export(tmp_path / "source", tmp_path / "bundle", precision="fp16-weights"))
    errors = {part: found.parity[part]["relative"] for part in found.parts}
    assert max(errors.values()) <= ROUNDING, errors
    assert "kept_fp32" not in found.parity["unet"]
    assert next(f for f in found.parts["unet"].files if f.engine == "onnx").precision == "fp16-weights"


def test_the_widths_are_those_of_the_models() -> None:
    from edgediff_export.sources.published_configs import UNET, UNET_XL

    assert {c["block_out_channels"][0] for c in (UNET, UNET_XL)} == {WIDTH}
    assert UNET_XL["addition_time_embed_dim"] == 256
