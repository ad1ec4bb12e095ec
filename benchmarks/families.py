"""Every family, as a folder and as one file: exported, run, and held against diffusers' own pipeline.

    python -m benchmarks.families [--full]

Seeded random weights at reduced width; --full adds SD 1.5 at its true size (folder and file). fp32, 4 steps, guidance
5, same seed; the figure is the largest absolute difference of the final latents (of pixel values in 0 .. 1 where there
are no latents). Every bundle passed the exporter's own checks before.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgediff
from benchmarks.common import table, write
from edgediff.bundle.reading import read_bundle
from edgediff.generation.arguments import Arguments
from edgediff.generation.request import plan_for
from edgediff_export.convert import export
from tests.support import families
from tests.support.original_layout import write_original

PACKAGES = ("edgediff", "numpy", "onnxruntime", "torch", "diffusers", "transformers", "onnx")
FILES = {
    "sd15": "sd1",
    "sd21": "sd2",
    "inpaint": "sd1",
    "sdxl": "sdxl",
    "sdxl-inpaint": "sdxl",
    "sdxl-refiner": "refiner",
}
PROMPT, SEED, STEPS, SCALE = "a red apple on a blue background", 7, 4, 5.0


def true_sd15() -> Any:
    """Make Stable Diffusion 1.5 at its own sizes, with seeded random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from edgediff_export.sources.clip_tokenizer import clip_tokenizer
    from edgediff_export.sources.published_configs import DDIM, FAMILIES

    configs = FAMILIES[0].configs
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(**configs["vae"]),
        text_encoder=CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        unet=UNet2DConditionModel(**configs["unet"]),
        scheduler=DDIMScheduler(**{k: v for k, v in DDIM.items() if not k.startswith("_")}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def compare(name: str, pipe: Any, bundle: Path, side: int | None = None) -> float:
    """Give the largest difference between diffusers' pipeline and ours."""
    pipe.set_progress_bar_config(disable=True)
    generator, arguments, ours = torch.Generator().manual_seed(SEED), {"num_inference_steps": STEPS}, {}
    mine = edgediff.load(bundle)
    width = mine.bundle.defaults.width if side is None else side
    if mine.bundle.text:
        scale = 0.0 if "turbo" in name else SCALE
        arguments |= {"prompt": PROMPT, "guidance_scale": scale}
        ours = {"prompt": PROMPT, "guidance_scale": scale}
    if mine.bundle.inpaints:
        picture = np.random.default_rng(0).integers(0, 256, (width, width, 3), np.uint8)
        mask = np.zeros((width, width), np.uint8)
        mask[width // 4 : width // 2, width // 8 :] = 255
        ours |= {"image": picture, "mask_image": mask}
        from PIL import Image

        arguments |= {"image": Image.fromarray(picture), "mask_image": Image.fromarray(mask), "strength": 1.0}
    if name == "pixel-ddim":
        arguments["use_clipped_model_output"] = True  # its noise estimate follows the clipped x0, as ours does
    if name == "pixel-text":  # without an autoencoder diffusers takes a cell to be 8 pixels
        arguments |= {"height": 8 * width, "width": 8 * width, "output_type": "latent"}
        wanted = pipe(generator=generator, **arguments).images.detach().numpy()
        found = mine(seed=SEED, output_type="latent", num_inference_steps=STEPS, **ours).latents
        return float(np.abs(found - wanted).max())
    if mine.bundle.latent.factor == 1:
        wanted = pipe(generator=generator, output_type="np", **arguments).images
        found = mine(seed=SEED, output_type="latent", num_inference_steps=STEPS, **ours).latents
        return float(np.abs((found / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1) - wanted).max())
    if name == "sdxl-refiner":  # from noise alone, which diffusers scales as for a picture that is noised
        cells = width // mine.bundle.latent.factor
        noise = torch.randn(1, 4, cells, cells, generator=torch.Generator().manual_seed(SEED)).numpy()
        plan = plan_for(mine.bundle, Arguments(num_inference_steps=STEPS, guidance_scale=SCALE))
        ours["latents"] = noise * np.float32(plan.levels[0].sigma / plan.start)
        arguments |= {"image": torch.zeros(1, 4, cells, cells), "strength": 1.0}
        arguments |= {"original_size": (width, width), "target_size": (width, width)}
    else:
        arguments |= {"height": width, "width": width}
    wanted = pipe(generator=generator, output_type="latent", **arguments).images.detach().numpy()
    ours |= {"height": width, "width": width}
    if side is not None:
        ours["sampler"] = "ddim"  # a file does not say; the published default is another
    return float(np.abs(mine(seed=SEED, num_inference_steps=STEPS, **ours).latents - wanted).max())


def measure(name: str, pipe: Any, source: Path, folder: Path, config: Path | None, side: int | None) -> dict[str, Any]:
    began = time.monotonic()
    out = export(source, folder / "bundle", precision="fp32", config=config)
    seconds = time.monotonic() - began
    bundle = read_bundle(out)
    return {
        "family": name,
        "as": "folder" if source.is_dir() else "file",
        "class": type(pipe).__name__,
        "parameters_millions": round(sum(p.numel() for p in pipe.unet.parameters()) / 1e6, 1),
        "parts": list(bundle.parts),
        "unet_inputs": [t.name for t in bundle.parts["unet"].inputs],
        "part_error": max(bundle.parity[part]["relative"] for part in bundle.parts),
        "latents": compare(name, pipe, out, side),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="SD 1.5 at its true size, too (12 GB of disk)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    rows = []
    for name in (*families.FAMILIES, *(("SD 1.5, true size",) if args.full else ())):
        true = name not in families.FAMILIES
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            pipe = true_sd15() if true else families.pipeline(name)
            pipe.save_pretrained(folder / "folder")
            sources = [folder / "folder"]
            if kind := "sd1" if true else FILES.get(name):
                sources.append(write_original(pipe, folder / "file.safetensors", kind))
            for source in sources:
                with tempfile.TemporaryDirectory(dir=folder) as inner:
                    # A file of the true size needs no config: it is told by its names.
                    config = folder / "folder" if source.is_file() and not true else None
                    rows.append(measure(name, pipe, source, Path(inner), config, 256 if true else None))
                    print(rows[-1], flush=True)
            del pipe
    print(table(
        ["family", "given as", "class", "U-Net, M", "parts", "worst part", "final result"],
        [[r["family"], r["as"], r["class"], r["parameters_millions"], len(r["parts"]), f"{r['part_error']:.0e}",
          f"{r['latents']:.0e}"] for r in rows],
    ))  # fmt: skip
    print("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "GB")
    if not args.no_write:
        write("families", {"steps": STEPS, "guidance_scale": SCALE, "rows": rows}, PACKAGES)


if __name__ == "__main__":
    main()
