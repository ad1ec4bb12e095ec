"""edgediff against diffusers and k-diffusion: the samplers' tables alone, and whole runs with the same weights.

    python -m benchmarks.oracle [--pipeline FOLDER]

Needs the test extra. FOLDER is a diffusers pipeline (default: the built-in model's own, kept in this repository).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np

from benchmarks.common import table, write
from edgediff.sampling.samplers import SAMPLERS
from tests.oracle.cases import PIPELINE, PIPELINES, V_PIPELINES, cases, golden_error, goldens, latents_error
from tests.oracle.schedulers import K_DIFFUSION, SCHEDULERS, scheduler_error


def table_errors() -> dict[str, dict[str, float]]:
    """Give float64 and float32 differences by sampler, spacing and prediction type."""
    out = {}
    for case in cases():
        out[" ".join(case)] = {"float64": scheduler_error(*case), "float32": scheduler_error(*case, wide=False)}
    for key in goldens():
        both = {"float64": golden_error(key, np.float64), "float32": golden_error(key, np.float32)}
        out[f"{key} epsilon (k-diffusion)"] = both
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from edgediff_export.convert import export

    tables = table_errors()
    rows = []
    oracles = {name: "k-diffusion" if name in K_DIFFUSION else SCHEDULERS[name][0] for name in SAMPLERS}
    for sampler, oracle in oracles.items():
        mine = {key: value for key, value in tables.items() if key.split()[0] == sampler}
        worst = [max(v[kind] for v in mine.values()) for kind in ("float64", "float32")]
        rows.append([SAMPLERS[sampler].label, oracle, str(len(mine)), *(f"{v:.1e}" for v in worst)])
    print(table(["sampler", "oracle", "cases", "float64", "float32"], rows))
    latents = {}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = export(args.pipeline, Path(scratch) / "fp32", precision="fp32")
        for sampler in V_PIPELINES if args.pipeline == PIPELINE else PIPELINES:
            latents[sampler] = latents_error(args.pipeline, bundle, sampler)
    print()
    print(table(["20 steps, guidance 5", "largest absolute difference"], [[k, f"{v:.1e}"] for k, v in latents.items()]))
    results = {"oracles": oracles, "tables": tables, "latents": latents}
    write("oracle", results, ("edgediff", "numpy", "onnxruntime", "torch", "diffusers"))


if __name__ == "__main__":
    main()
