"""Command lines: every command and option, with values that are sound and strange."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from .arguments import examples
from .bundles import DATA
from .children import Report, judged
from .shown import command
from .values import TEXTS

COMMANDS = ("generate", "samplers", "plan", "info", "verify", "build", "--help", "--version", "nonsense", "")
OPTIONS = (
    *("-o", "--output", "--model", "--steps", "--sampler", "--spacing", "--guidance-scale", "--guidance-interval"),
    *("--seed", "--negative-prompt", "--plain-prompt", "--embedding", "--clip-skip", "--negative-clip-skip", "--eta"),
    *("--guidance-rescale", "--dynamic-thresholding", "--rng", "--size", "--image", "--mask", "--original-size"),
    *("--crop", "--target-size", "--aesthetic-score", "--negative-aesthetic-score", "--batch", "--device", "--engine"),
    *(
        "--threads",
        "--guidance",
        "--timesteps",
        "--sigmas",
        "--files",
        "--help",
        "--plans",
        "--deadline",
        "--release-parts",
    ),
    *("--memory-limit", "--engine-cache", "--nonsense", "--", "-", "--isolated"),
)
VALUES = (
    *(
        "tiny",
        "bundle",
        "out.png",
        "out.webp",
        "none/out.png",
        ".",
        "/",
        "1",
        "2",
        "0",
        "-1",
        "3.5",
        "1e999",
        "nan",
        "inf",
    ),
    *(
        "32x32",
        "64x32",
        "0x0",
        "99999x99999",
        "x",
        "32",
        "32x",
        "0.2,0.8",
        "1,0",
        "900,500,1",
        ",",
        "cpu",
        "cuda",
        "cuda:9",
    ),
    *("euler", "ddim", "DPM++ 2M Karras", "trailing", "karras", "cfg", "apg", "onnx", "tensorrt", "torch-cuda"),
    *("a red apple", "", "(a:1.3)", "((", "w=x.safetensors", "=", "9" * 5000, "1MB", "2GB", "tiny/golden.safetensors"),
    *(text for text in TEXTS if "\x00" not in text and len(text) < 1000),
)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=6)
line = st.tuples(
    st.sampled_from((*COMMANDS, *["generate"] * 6)),
    st.lists(st.one_of(st.sampled_from(OPTIONS), st.sampled_from(VALUES), words), max_size=6),
    st.booleans(),
).map(lambda drawn: ([drawn[0], *drawn[1], *(["--model", "tiny", "--steps", "1"] if drawn[2] else [])],))


class Lines:
    name = "lines"
    at_once = 100

    def prepare(self, work: Path) -> None:
        """Nothing is needed."""

    def roots(self, work: Path) -> list[Path]:
        return [Path("/")]  # the caller names the paths

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        shutil.copytree(DATA / "tiny", folder / "tiny")
        os.chdir(folder)
        set_hypothesis_home_dir(folder)
        examples(lambda argv: report(judged(repr(argv)[:400], lambda: command(*argv))), line, numbers, seed)


KIND = Lines()
