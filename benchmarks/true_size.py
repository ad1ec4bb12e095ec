"""Checkpoints at the true sizes of published models, with seeded random weights: fp16, written one tensor at a time.

python -m benchmarks.true_size sdxl FOLDER        # or sd15, or turbo: SD-Turbo with the tiny decoder
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = {"sd15": "Stable Diffusion 1", "sdxl": "SDXL", "turbo": "SD-Turbo"}
TINY = "AutoencoderTiny"  # of turbo; its configuration is the published one where nothing is said
LIBRARIES = {"CLIP": "transformers"}  # of classes whose names begin so; all others are diffusers'


def write_source(size: str, folder: Path) -> Path:
    """Write the folder that ``save_pretrained`` would write of a pipeline with these weights."""
    from accelerate import init_empty_weights

    from edgediff_export.sources.clip_tokenizer import END, EXCLAMATION, clip_tokenizer
    from edgediff_export.sources.loading import model_class
    from edgediff_export.sources.published_configs import FAMILIES
    from edgediff_export.sources.single_file import class_of_component

    family = next(f for f in FAMILIES if f.name == SIZES[size])
    index: dict[str, Any] = {"_class_name": family.pipeline}
    for seed, (component, config) in enumerate(family.configs.items()):
        name = class_of_component(component)
        if size == "turbo" and component == "vae":
            name, config = TINY, {}
        cls = model_class(name)
        with init_empty_weights():
            if hasattr(cls, "load_config"):
                model = cls.from_config({"in_channels": 3 if component == "vae" else 4, **config})
                model.save_config(folder / component)
            else:
                model = cls(cls.config_class(**config))
                model.config.save_pretrained(folder / component)
        stem = "model" if name.startswith("CLIP") else "diffusion_pytorch_model"
        shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
        write_weights(folder / component / f"{stem}.safetensors", shapes, np.random.default_rng(seed))
        index[component] = [LIBRARIES.get(name[:4], "diffusers"), name]
    for tokenizer, pad in (("tokenizer", END), ("tokenizer_2", EXCLAMATION)):
        if tokenizer.replace("tokenizer", "text_encoder") in family.configs:
            clip_tokenizer(pad).save_pretrained(folder / tokenizer)
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
    scheduler = str(family.scheduler["_class_name"])
    model_class(scheduler).from_config(family.scheduler).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", scheduler]
    for absent in ("safety_checker", "feature_extractor") if size != "sdxl" else ():
        index[absent] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return folder


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    """Write a safetensors file of fp16 tensors, each drawn when its turn comes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            f.write(drawn(name, shape, random).tobytes())


def drawn(name: str, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float16]:
    """Draw one tensor: norms near 1, biases near 0, the rest so that a layer keeps the size of what it is given."""
    values = random.standard_normal(shape, np.float32)
    if name.endswith("bias"):
        values *= 0.02
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    elif "embedding" in name and len(shape) == 2 and "linear" not in name:
        values *= 0.5
    else:
        values *= 1 / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(write_source(args.size, args.folder))


if __name__ == "__main__":
    main()
