"""U-Nets that take latents of any size are told by their config."""

from __future__ import annotations

from typing import Any

SIZED_BY_SKIP = ("UpBlock2D", "CrossAttnUpBlock2D")  # blocks of the way up that can end at any size


def takes_any_size(unet: Any) -> bool:
    """Whether a U-Net of this config takes latents of any size: an odd side is halved up, and the way back leads to
    the size of the skip connection. Others double, so their sides must divide by all halvings.
    """
    kinds = unet.up_block_types[:-1]  # the last does not upsample
    return "cross_attention_dim" in unet and all(kind in SIZED_BY_SKIP for kind in kinds)  # not UNet2DModel
