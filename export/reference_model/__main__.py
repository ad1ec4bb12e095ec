"""Train the built-in model: ``python -m edgediff_export.reference_model --config core64 --out runs/core64``.

Stages resume from the checkpoints in the folder; ``--stage publish`` then puts the result where it ships. ``--stage
export`` only exports the bundle again from the pipeline that the repository holds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

STAGES = ("vae", "clip", "unet", "save")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="core64", help="a preset's name or a JSON file")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, logs, sample sheets and the pipeline")
    parser.add_argument("--stage", default="all", choices=(*STAGES, "all", "publish", "export"))
    parser.add_argument("--repository", type=Path, default=Path(), help="the checkout that publish writes to")
    parser.add_argument("--threads", type=int, default=0, help="torch CPU threads (default: all)")
    args = parser.parse_args()

    import torch

    from . import config as configs
    from .glyphs import glyph_set

    if args.threads:
        torch.set_num_threads(args.threads)
    config = configs.load(args.config)
    glyphs = glyph_set(config.objects)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "config.json"
    if kept.exists() and configs.load(str(kept)) != config:
        parser.error(f"{kept} holds another config; resume with --config {kept}, or train in another folder")
    kept.write_text(config.to_json(), encoding="utf-8")
    wanted = STAGES if args.stage == "all" else (args.stage,)
    if "vae" in wanted:
        from .train_vae import train_vae

        train_vae(config, glyphs, args.out)
    if "clip" in wanted:
        from .train_clip import train_clip

        train_clip(config, glyphs, args.out)
    if "unet" in wanted:
        from .train_unet import train_unet

        train_unet(config, glyphs, args.out)
    if "save" in wanted:
        from .save import save

        save(config, glyphs, args.out)
    if args.stage == "publish":
        from .publish import publish

        publish(config, glyphs, args.out, args.repository)
    elif args.stage == "export":
        from .publish import export_again

        export_again(config, glyphs, args.out, args.repository)


if __name__ == "__main__":
    main()
