"""``edgediff generate``: a prompt in, pictures out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..checks import is_whole
from ..engines.background_build import Build
from ..errors import ArgumentError, printable, shown
from ..generation.arguments import MAX_IMAGES
from ..image import check_output, save
from ..loading import load
from ..sampling.rng import GENERATORS
from .options import add_engine, add_plan_arguments, engine_arguments, named_file, numbers, plan_arguments, size
from .progress import bar, progress


def add(commands: Any) -> None:
    """Add the command and its own options."""
    p = commands.add_parser("generate", help="make a picture from a prompt")
    p.add_argument("prompt", nargs="?", help="'' draws without one; none for models without a text encoder")
    p.add_argument("-o", "--output", default="out.png", metavar="FILE", help="png, webp or jpg (default: out.png)")
    add_plan_arguments(p)
    p.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="0 .. 2**64-1; of torch-cpu's the low 32 bits count, as in torch (default: random, and printed)",
    )
    p.add_argument("--negative-prompt", metavar="TEXT")
    p.add_argument("--plain-prompt", action="store_true", help="brackets and BREAK are text, not weights and chunks")
    p.add_argument(
        "--embedding", action="append", metavar="[WORD=]FILE", help="a textual inversion (safetensors); repeatable"
    )
    p.add_argument(
        "--clip-skip",
        type=int,
        default=0,
        metavar="N",
        help="leave out the text encoder's last N layers for the prompt (default: 0)",
    )
    p.add_argument(
        "--negative-clip-skip",
        type=int,
        default=0,
        metavar="N",
        help="the same for the negative prompt (default: 0, as in diffusers; A1111 has --clip-skip's)",
    )
    p.add_argument(
        "--guidance-rescale", type=float, default=0.0, metavar="P", help="0 .. 1, against overexposure (default: 0)"
    )
    p.add_argument(
        "--dynamic-thresholding", type=float, metavar="Q", help="0 .. 1, clip guided x0 at this quantile (default: off)"
    )
    p.add_argument(
        "--rng",
        default="torch-cpu",
        metavar="R",
        help=f"{', '.join(GENERATORS)}: whose noise a seed gives again (default: torch-cpu)",
    )
    p.add_argument("--size", metavar="WxH", help="pixels (default: the model's)")
    p.add_argument(
        "--image", metavar="FILE", help="for inpainting models: the picture (png, jpg, webp), scaled to the size"
    )
    p.add_argument("--mask", metavar="FILE", help="for inpainting models: white is drawn anew, black is kept")
    p.add_argument("--original-size", metavar="WxH", help="SDXL: what it should look scaled from (default: the size)")
    p.add_argument("--crop", metavar="TOP,LEFT", help="SDXL: pixels that it should look cut off at (default: 0,0)")
    p.add_argument("--target-size", metavar="WxH", help="SDXL: what it should look scaled to (default: the size)")
    p.add_argument("--aesthetic-score", type=float, metavar="A", help="SDXL's refiner, 0 .. 10 (default: 6)")
    p.add_argument(
        "--negative-aesthetic-score", type=float, metavar="A", help="SDXL's refiner, 0 .. 10, to avoid (default: 2.5)"
    )
    p.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="number of pictures, of seeds S, S+1, ..., in FILE-0, FILE-1, ... (default: 1)",
    )
    p.add_argument("--deadline", type=float, metavar="S", help="seconds that the pictures may take (default: any)")
    add_engine(p)
    p.set_defaults(run=generate)


def generate(args: argparse.Namespace) -> None:
    """Make the pictures, and print where they are and what their seeds were."""
    width, height = size(args.size) if args.size is not None else (None, None)
    if not is_whole(args.batch, 1, MAX_IMAGES):
        raise ArgumentError(f"batch is {shown(args.batch)}; it must be 1 .. {MAX_IMAGES}")
    outputs = [check_output(path) for path in numbered(Path(args.output), args.batch)]
    pipe = load(args.model, **engine_arguments(args))
    for text in args.embedding or ():
        word, file = named_file(text)
        pipe.load_textual_inversion(file, word)
    steps = pipe.stream(
        args.prompt,
        negative_prompt=args.negative_prompt,
        height=height,
        width=width,
        num_images_per_prompt=args.batch,
        seed=args.seed,
        rng=args.rng,
        clip_skip=args.clip_skip,
        negative_clip_skip=args.negative_clip_skip,
        guidance_rescale=args.guidance_rescale,
        dynamic_thresholding_ratio=args.dynamic_thresholding,
        prompt_syntax="plain" if args.plain_prompt else "a1111",
        image=args.image,
        mask_image=args.mask,
        deadline=args.deadline,
        **size_arguments(args),
        **plan_arguments(args),
    )
    for step in progress(steps):
        pass
    result = step.result()
    for image, path in zip(result.images, outputs, strict=True):
        save(image, path)
    for path, seed in zip(outputs, result.seeds, strict=True):  # which may fail, with all pictures kept
        print(f"{path} (seed {seed})", flush=True)
    if pipe.build is not None:
        watch(pipe.build)


def numbered(path: Path, count: int) -> list[Path]:
    """``out.png`` for one picture; ``out-0.png``, ``out-1.png``, ... for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(count)]


def size_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What SDXL and its refiner are told besides the prompt, under the names of ``Arguments``."""
    crop = numbers("crop", args.crop)
    sizes = {"original_size": args.original_size, "target_size": args.target_size}
    return {
        **{name: None if text is None else size(text, name)[::-1] for name, text in sizes.items()},
        "crops_coords_top_left": None if crop is None else tuple(int(v) if v.is_integer() else v for v in crop),
        "aesthetic_score": args.aesthetic_score,
        "negative_aesthetic_score": args.negative_aesthetic_score,
    }


def watch(build: Build) -> None:
    """Stay until engine files that are being built are there; the picture is drawn already."""
    with bar("building TensorRT engines") as draw:
        while not build.wait(0.1):
            draw(build.share, "")
    for text in dict.fromkeys(map(str, build.errors.values())):
        print(f"edgediff: warning: {printable(text)}", file=sys.stderr)
