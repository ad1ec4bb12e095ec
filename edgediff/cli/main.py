"""The command ``edgediff``. Exit codes: 0 done, 2 bad input (said on stderr), 130 interrupted, 141 pipe closed."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..bundle.reading import read_bundle
from ..engines.background_build import Build
from ..engines.base import DEVICES
from ..engines.choose import ENGINES
from ..errors import ArgumentError, BundleError, EdgediffError, EngineError, PromptWarning
from ..generation.arguments import Arguments
from ..generation.request import plan_for
from ..image import check_output, save
from ..pipeline import load
from ..sampling.guidance import METHODS
from ..sampling.planning import GUIDANCES
from ..sampling.rng import GENERATORS
from ..sampling.samplers import SAMPLERS
from ..sampling.schedule import SPACINGS
from ..verify import prove
from ..version import __version__
from . import build as build_command
from . import info as info_command
from .options import add_plans, numbers, size
from .progress import bar, progress


def numbered(path: Path, count: int) -> list[Path]:
    """``out.png`` for one picture; ``out-0.png``, ``out-1.png``, ... for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(count)]


def generate(args: argparse.Namespace) -> None:
    width, height = size(args.size) if args.size is not None else (None, None)
    if not 1 <= args.batch <= 1000:
        raise ArgumentError(f"batch is {args.batch}; it must be 1 .. 1000")
    outputs = [check_output(path) for path in numbered(Path(args.output), args.batch)]
    pipe = load(args.model, device=args.device, engine=args.engine, threads=args.threads, plans=args.plans)
    for given in args.embedding or ():
        word, equals, file = given.partition("=")
        named = equals and not Path(given).exists()  # a path may hold the sign itself
        pipe.load_textual_inversion(file if named else given, word if named else None)
    steps = pipe.stream(
        args.prompt,
        negative_prompt=args.negative_prompt,
        height=height,
        width=width,
        num_images_per_prompt=args.batch,
        seed=args.seed,
        rng=args.rng,
        clip_skip=args.clip_skip,
        guidance_rescale=args.guidance_rescale,
        dynamic_thresholding_ratio=args.dynamic_thresholding,
        prompt_syntax="plain" if args.plain_prompt else "a1111",
        image=args.image,
        mask_image=args.mask,
        **told(args),
        **plan_arguments(args),
    )
    for step in progress(steps):
        pass
    result = step.result()
    for image, path, seed in zip(result.images, outputs, result.seeds, strict=True):
        save(image, path)
        print(f"{path} (seed {seed})", flush=True)
    if pipe.build is not None:
        watch(pipe.build)


def watch(build: Build) -> None:
    """Stay until plans that are being built are there; the picture is drawn already."""
    with bar("building TensorRT plans") as draw:
        while not build.wait(0.1):
            draw(build.share, "")
    for text in dict.fromkeys(map(str, build.errors.values())):
        print(f"edgediff: warning: {text}", file=sys.stderr)


def told(args: argparse.Namespace) -> dict[str, Any]:
    """What SDXL and its refiner are told besides the prompt, under the names of ``Pipeline.stream``."""
    crop = numbers("crop", args.crop)
    sizes = {"original_size": args.original_size, "target_size": args.target_size}
    return {
        **{name: None if text is None else size(text, name)[::-1] for name, text in sizes.items()},
        "crops_coords_top_left": None if crop is None else tuple(int(v) if v.is_integer() else v for v in crop),
        "aesthetic_score": args.aesthetic_score,
        "negative_aesthetic_score": args.negative_aesthetic_score,
    }


def plan_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What ``add_plan_arguments`` adds, under the names of ``Bundle.plan`` and ``Pipeline.stream``."""
    scale = numbers("guidance-scale", args.guidance_scale)
    interval = numbers("guidance-interval", args.guidance_interval)
    return {
        "sampler": args.sampler,
        "num_inference_steps": args.steps,
        "guidance_scale": scale[0] if scale is not None and len(scale) == 1 else scale,
        "spacing": args.spacing,
        "eta": args.eta,
        "guidance": args.guidance,
        "guidance_interval": None if interval is None else tuple(interval),
        "timesteps": numbers("timesteps", args.timesteps),
        "sigmas": numbers("sigmas", args.sigmas),
    }


def show_plan(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.model)
    unfused = args.guidance in METHODS and args.guidance not in GUIDANCES
    table = plan_for(bundle, Arguments(**plan_arguments(args)))
    print(
        f"{table.label}, {table.spacing} spacing, {bundle.schedule.prediction_type}, "
        f"starting noise x {table.start:.6g}\n"
        "x' = a*x + bu*u + bc*c + sum_k wk*h_k + d*noise;  h = p*x + qu*u + qc*c"
    )
    if unfused:
        print(
            f"{args.guidance} makes one output m of u and c, between the U-Net and the row, which then reads "
            "(bu + bc)*m and (qu + qc)*m"
        )
    print(table)


def verify(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.bundle)
    broken = 0
    for name, file in bundle.files():
        try:
            bundle.path(name, file)
            print(f"ok  {name:<16}{file.path}  {file.sha256}")
        except BundleError as error:
            broken += 1
            print(f"BAD {name:<16}{file.path}  {error}")
    if broken:
        raise BundleError(
            f"{broken} of {len(bundle.files())} files of bundle {bundle.name!r} are missing, damaged or unreadable"
        )
    if args.files or bundle.golden is None:
        if not args.files:
            print(f"not proved: bundle {bundle.name!r} holds no golden tensors")
        return
    pipe = load(args.bundle, device=args.device, engine=args.engine, threads=args.threads, plans=args.plans)
    failed = 0
    for finding in prove(pipe):
        failed += not finding.ok
        print(f"{'ok ' if finding.ok else 'BAD'} {finding.what:<16}{finding.detail}", flush=True)
    if failed:
        raise BundleError(f"{failed} checks of bundle {bundle.name!r} against torch's golden tensors failed")


def hand_over(arguments: Sequence[str]) -> int:
    """``edgediff export ...`` is the export stage's own command, in a process that may load torch."""
    if importlib.util.find_spec("edgediff_export") is None:
        raise EngineError("the export stage is not installed; install edgediff with its extras export and cpu")
    return subprocess.run([sys.executable, "-m", "edgediff_export", *arguments], check=False).returncode


class Parser(argparse.ArgumentParser):
    """One line an error, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="edgediff", description="Latent diffusion on the edge: NumPy and an engine.")
    top.add_argument("--version", action="version", version=f"edgediff {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_engine(p: argparse.ArgumentParser) -> None:
        p.add_argument("--device", default="cpu", metavar="D", help=", ".join(DEVICES))
        p.add_argument(
            "--engine",
            metavar="E",
            help=f"{', '.join(ENGINES)} (builds what is missing meanwhile; default: a plan that was built, else onnx)",
        )
        add_plans(p)
        p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a physical core)")

    def add_plan_arguments(p: argparse.ArgumentParser) -> None:
        p.add_argument("--model", metavar="BUNDLE", help="a bundle's folder (default: the built-in emoji model)")
        p.add_argument(
            "--steps",
            type=int,
            metavar="N",
            help="steps; some samplers call the U-Net twice in one (default: the model's)",
        )
        p.add_argument(
            "--guidance-scale",
            metavar="G",
            help="1 or less turns guidance off; G,G,... is one a step (default: the model's)",
        )
        p.add_argument(
            "--sampler",
            metavar="S",
            help=f"{', '.join(SAMPLERS)}; diffusers' class names and A1111's labels work too (default: the model's)",
        )
        p.add_argument("--spacing", metavar="K", help=f"{', '.join(SPACINGS)} (default: the sampler's or the model's)")
        p.add_argument("--timesteps", metavar="T,T,...", help="explicit timesteps in place of a spacing")
        p.add_argument("--sigmas", metavar="V,V,...", help="explicit noise levels, in place of a spacing")
        p.add_argument("--eta", type=float, metavar="E", help="share of fresh noise, for samplers that take it")
        p.add_argument(
            "--guidance",
            default="cfg",
            metavar="M",
            help="cfg; cfg++ (G is then 0 .. 1, default 0.6; for samplers without history); or apg (default: cfg)",
        )
        p.add_argument(
            "--guidance-interval", metavar="A,B", help="shares of the run, 0 .. 1, between which guidance is on"
        )

    p = commands.add_parser("generate", help="make a picture from a prompt")
    p.add_argument("prompt", nargs="?", default="", help="none for models without a text encoder")
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
        "--clip-skip", type=int, default=0, metavar="N", help="leave out the text encoder's last N layers (default: 0)"
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
    p.add_argument("--image", metavar="FILE", help="for inpainting models: the picture, scaled to the size")
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
    add_engine(p)
    p.set_defaults(run=generate)

    p = commands.add_parser("plan", help="print the table of numbers that a sampler is")
    add_plan_arguments(p)
    p.set_defaults(run=show_plan)

    info_command.add(commands)
    build_command.add(commands)

    p = commands.add_parser("verify", help="check every file, and run the parts against what torch gave at export")
    p.add_argument("bundle", nargs="?", metavar="BUNDLE", help="default: the built-in emoji model")
    p.add_argument("--files", action="store_true", help="checksums alone")
    add_engine(p)
    p.set_defaults(run=verify)

    commands.add_parser("export", help="turn a diffusers folder into a bundle (needs the export extra)", add_help=False)
    return top


def _drop_stdout() -> None:
    """Keep the interpreter from flushing, and failing, once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def show_warning(message: Warning | str, *_: object) -> None:
        print(f"edgediff: warning: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PromptWarning)
            warnings.showwarning = show_warning  # type: ignore[assignment]
            if arguments[:1] == ["export"]:
                return hand_over(arguments[1:])
            args = parser().parse_args(arguments)
            args.run(args)
            if sys.stdout is not None:  # there is none under pythonw and some daemons
                sys.stdout.flush()
    except EdgediffError as error:
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `edgediff info | head`: the reader has seen enough
        _drop_stdout()
        return 141
    except OSError as error:  # a full disk behind stdout; pictures have errors of their own
        _drop_stdout()
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
