"""SDXL at its true size: its pictures beside diffusers', and what one call and one picture take, by precision.

    python -m benchmarks.large [--precisions fp16-weights int8] [--work FOLDER]

The checkpoint is benchmarks.true_size's, in fp16. Each row is a process of its own. Latents of a 256 px picture of two
steps are compared with diffusers' in float32. A call is the U-Net's at 1024 px with guidance (two images), of a picture
of one step. Memory is the largest resident size, pages of mapped files included; with ``release_parts`` one part is
held at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, table, write
from benchmarks.exports import memory_of
from benchmarks.true_size import write_source

PACKAGES = ("edgediff", "numpy", "onnxruntime", "torch", "diffusers", "transformers")
PROMPT, SEED, SCALE = "a red apple on a blue background", 7, 5.0
SMALL = {"height": 256, "width": 256, "num_inference_steps": 2, "guidance_scale": SCALE}
LARGE = {"height": 1024, "width": 1024, "num_inference_steps": 1, "guidance_scale": SCALE}


def by_diffusers(source: Path, out: Path) -> dict[str, Any]:
    """Draw the small picture by diffusers; keep its latents."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(str(source), torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    latents = pipe(PROMPT, generator=generator, output_type="latent", **SMALL).images
    np.save(out, latents.detach().numpy())
    return {}


def by_us(bundle: Path, out: Path) -> dict[str, Any]:
    """Draw the small picture; keep its latents."""
    import edgediff

    np.save(out, edgediff.load(bundle, release_parts=True)(PROMPT, seed=SEED, output_type="latent", **SMALL).latents)
    return {}


def a_picture(bundle: Path, release: bool) -> dict[str, Any]:
    """Draw the large picture; give the seconds of its U-Net call, and of all."""
    import edgediff
    from edgediff.engines.session import OnnxRuntimeEngine

    calls, ordinary = [0.0], OnnxRuntimeEngine.__call__

    def timed(self: Any, **inputs: Any) -> Any:
        began = time.monotonic()
        out = ordinary(self, **inputs)
        if "timestep" in inputs:
            calls.append(time.monotonic() - began)
        return out

    OnnxRuntimeEngine.__call__ = timed  # type: ignore[method-assign]
    began = time.monotonic()
    assert np.isfinite(edgediff.load(bundle, release_parts=release)(PROMPT, seed=SEED, **LARGE).latents).all()
    return {"call_seconds": round(calls[-1], 1), "picture_seconds": round(time.monotonic() - began, 1)}


def child(*arguments: Any) -> dict[str, Any]:
    """Run one of the above in a process of its own; add its peak memory."""
    command = [sys.executable, "-m", "benchmarks.large", "--do", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    own = whole = 0
    while process.poll() is None:
        try:
            now = memory_of(process.pid)
        except (OSError, TypeError):
            break
        own, whole = max(own, now[0]), max(whole, now[1])
        time.sleep(0.25)
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    peaks = {"own_memory_gb": round(own / 1e9, 2), "memory_with_pages_gb": round(whole / 1e9, 2)}
    result: dict[str, Any] = json.loads(said.splitlines()[-1])
    return result | peaks


def export_bundle(source: Path, out: Path, precision: str) -> Path:
    command = [sys.executable, "-m", "edgediff", "export", str(source), str(out), "--precision", precision]
    subprocess.run(command, check=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["fp16-weights", "int8"])
    parser.add_argument("--work", type=Path, help="a folder whose checkpoint and bundles are used again")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--do", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.do:
        what, path, argument = args.do
        tasks = {"diffusers": by_diffusers, "us": by_us}
        result = tasks[what](Path(path), Path(argument)) if what in tasks else a_picture(Path(path), argument == "True")
        print(json.dumps(result))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        source, theirs = work / "sdxl", work / "diffusers.npy"
        if not (source / "model_index.json").is_file():
            write_source("sdxl", source)
        memory = child("diffusers", source, theirs)
        for precision in args.precisions:
            bundle, ours = work / f"sdxl-{precision}", work / f"{precision}.npy"
            if not (bundle / "bundle.json").is_file():
                export_bundle(source, bundle, precision)
            child("us", bundle, ours)
            wanted, found = np.load(theirs), np.load(ours)
            row = {
                "precision": precision,
                "latents": float(f"{np.abs(found - wanted).max():.1e}"),
                "largest_latent": float(f"{np.abs(wanted).max():.3g}"),
            }
            for release in (True,) if precision == "int8" else (False, True):
                rows.append(row | {"release_parts": release} | child("picture", bundle, release))
                print(rows[-1], flush=True)
    print(table(
        ["precision", "latents, 256 px", "release_parts", "U-Net call, 1024 px, s", "own memory", "with file pages"],
        [[r["precision"], f"{r['latents']:.0e} of {r['largest_latent']:g}", "yes" if r["release_parts"] else "no",
          r["call_seconds"], r["own_memory_gb"], r["memory_with_pages_gb"]] for r in rows],
    ))  # fmt: skip
    if not args.no_write:
        write("large", {"rows": rows, "diffusers_256px": memory}, PACKAGES, RESULTS)


if __name__ == "__main__":
    main()
