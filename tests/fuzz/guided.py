"""``python -m tests.fuzz.guided TARGET``: Atheris looks for new paths through a reader that is written in Python.

It needs ``pip install atheris`` (Linux, Python 3.11 to 3.13). Options behind ``--`` are libFuzzer's::

    python -m tests.fuzz.guided manifest -- -max_total_time=60
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgediff"]):
    from edgediff.bundle.foreign.scheduler_defaults import completed
    from edgediff.bundle.onnx_file.walk import read_header
    from edgediff.bundle.reading import read_bundle
    from edgediff.bundle.scheduler_config import schedule_of
    from edgediff.errors import EdgediffError
    from edgediff.looks import look_at
    from edgediff.prompts.textual_inversion import read_embedding
    from edgediff.prompts.weights import parse
    from edgediff.sampling.schedule import Schedule

DATA = Path(__file__).parents[1] / "data" / "tiny"


def in_file(name: str, use: Callable[[Path], object]) -> Callable[[bytes], None]:
    """A target that reads a file of these bytes."""
    path = Path(tempfile.mkdtemp()) / name

    def target(data: bytes) -> None:
        path.write_bytes(data)
        use(path)

    return target


def config(data: bytes) -> None:
    """A scheduler's config becomes a schedule."""
    tree = json.loads(data)
    if isinstance(tree, dict):
        Schedule(**schedule_of(completed(tree, Path("scheduler_config.json"))))


TARGETS: dict[str, tuple[Callable[[bytes], object], list[Path]]] = {
    "manifest": (in_file("bundle.json", lambda path: read_bundle(path.parent)), [DATA / "bundle.json"]),
    "graph": (in_file("model.onnx", read_header), [DATA / "vae_encoder.onnx"]),
    "look": (in_file("file.safetensors", look_at), [DATA / "golden.safetensors"]),
    "embedding": (in_file("word.safetensors", read_embedding), []),
    "prompt": (lambda data: parse(data.decode("utf-8", "replace")), []),
    "config": (config, []),
}


def main(argv: list[str]) -> None:
    """Run one target until it is told to stop; libFuzzer ends the process."""
    if len(argv) < 2 or argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.guided {{{','.join(TARGETS)}}} [-- OPTION ...]")
    use, seeds = TARGETS[argv[1]]
    corpus = Path(tempfile.mkdtemp(prefix="corpus-"))
    for seed in seeds:
        shutil.copy(seed, corpus)

    def target(data: bytes) -> None:
        with suppress(EdgediffError, json.JSONDecodeError, UnicodeDecodeError):
            use(data)

    atheris.Setup([argv[0], *argv[2:], str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main([argument for argument in sys.argv if argument != "--"])
