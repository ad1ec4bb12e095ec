"""Time, peak memory and file size of one U-Net call, by precision, against the graph as torch exports it.

    python -m benchmarks.unet [--sizes 256 512] [--calls 5] [--rounds 2] [--work FOLDER]

SD 1.5's U-Net at its true size with seeded random weights (859,520,964 parameters), batch 2 (guidance), 77 tokens.
Every variant runs in a process of its own, in turn, so that one run's ratios are of one machine and one hour. "as
exported" is what torch.onnx.export writes of diffusers' module, untouched. OpenVINO reads that same file; in fp32, and
as it chooses by itself (bf16 where the processor has it).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table, write

CONFIG = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
PARAMETERS = 859_520_964
EXPORTED = "as exported"
OURS = {"fp32": "fused, fp32", "fp16-weights": "fp16 stored", "int8": "int8 stored", "int8-dynamic": "int8 linears"}
OPENVINO = {"openvino": "OpenVINO fp32", "openvino-own": "OpenVINO by itself"}
PACKAGES = ("edgediff", "numpy", "onnxruntime", "openvino", "torch", "diffusers")


def prepare(work: Path) -> dict[str, Path]:
    """Give every variant's .onnx file; one that is not there yet is made."""
    paths = {EXPORTED: work / "exported" / "unet.onnx"}
    paths |= {label: work / name / "unet.onnx" for name, label in OURS.items()}
    if not all(p.is_file() for p in paths.values()):
        subprocess.run([sys.executable, "-m", "benchmarks.unet", "--prepare", str(work)], check=True)
    return paths


def make(work: Path) -> None:
    """Export the U-Net as torch does, and as this project does in every precision."""
    import onnx
    import torch
    from diffusers import UNet2DConditionModel

    from edgediff_export.onnx_graph.attention import use_fused
    from edgediff_export.onnx_graph.binding import binder
    from edgediff_export.onnx_graph.graph import write_graph
    from edgediff_export.onnx_graph.modules import Unet
    from edgediff_export.onnx_graph.trace import OPSET, trace
    from edgediff_export.precision.precisions import seen_graph
    from edgediff_export.sources.mapped_weights import of_tensor

    torch.manual_seed(0)
    model = UNet2DConditionModel(**CONFIG).eval()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS
    example = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([999.0]),
        "encoder_hidden_states": torch.randn(1, 77, 768),
    }
    cells = {0: "batch", 2: "latent_height", 3: "latent_width"}
    axes = {"sample": cells, "timestep": {0: "batch"}, "encoder_hidden_states": {0: "batch", 1: "tokens"}}
    axes["out_sample"] = cells
    raw = work / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.onnx.export(
            Unet(model),
            kwargs=example,
            f=str(raw / "unet.onnx"),
            input_names=list(example),
            output_names=["out_sample"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    (work / "exported").mkdir(exist_ok=True)  # one file of weights instead of hundreds
    onnx.save_model(
        onnx.load(str(raw / "unet.onnx")),
        str(work / "exported" / "unet.onnx"),
        save_as_external_data=True,
        location="data",
    )
    bind = binder("unet", {name: of_tensor(p) for name, p in model.named_parameters()})
    graph = trace(Unet(use_fused(model)), example, ["out_sample"], axes, bind)
    for name in OURS:
        (work / name).mkdir(parents=True, exist_ok=True)
        write_graph(seen_graph(graph, name, ())[1], work / name / "unet.onnx")


def child(kind: str, path: str, size: int, calls: int) -> None:
    """Open, call, and print what it took as JSON."""
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((2, 4, size // 8, size // 8), np.float32),
        "timestep": np.full(2, 500, np.float32),
        "encoder_hidden_states": rng.standard_normal((2, 77, 768), np.float32),
    }
    began = time.monotonic()
    if kind.startswith("openvino"):
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"} if kind == "openvino" else {}
        compiled = openvino.Core().compile_model(path, "CPU", options)

        def call() -> Any:
            return next(iter(compiled(inputs).values()))
    else:
        from edgediff.engines.session import import_onnxruntime

        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        def call() -> Any:
            return session.run(None, inputs)[0]

    opened = time.monotonic() - began
    times = []
    for _ in range(calls):
        began = time.monotonic()
        out = call()
        times.append(time.monotonic() - began)
    np.save(Path(path).parent / f"out_{kind}_{size}.npy", out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    settled = statistics.median(times[2:])  # engines take memory in their first calls
    run = times[0] + times[1] + 18 * settled
    print(json.dumps({"open_s": opened, "first_s": times[0], "call_s": settled, "run_s": run, "peak_mb": peak}))


def measure(work: Path, sizes: list[int], calls: int, rounds: int) -> dict[str, Any]:
    paths = prepare(work)
    jobs = {label: ("onnxruntime", path) for label, path in paths.items()}
    jobs |= {label: (kind, paths[EXPORTED]) for kind, label in OPENVINO.items()}
    results: dict[str, Any] = {}
    for size in sizes:
        found: dict[str, list[dict[str, float]]] = {label: [] for label in jobs}
        for _ in range(rounds):
            for label, (kind, path) in jobs.items():
                command = [sys.executable, "-m", "benchmarks.unet", "--child", kind, str(path), str(size), str(calls)]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[label].append(json.loads(out.splitlines()[-1]))
                print(size, label, out.splitlines()[-1], file=sys.stderr, flush=True)
        reference = np.load(paths[EXPORTED].parent / f"out_onnxruntime_{size}.npy")
        rows = {}
        for label, runs in found.items():
            kind, path = jobs[label]
            out = np.load(path.parent / f"out_{kind}_{size}.npy")
            rows[label] = {
                "call_s": round(statistics.median(r["call_s"] for r in runs), 3),
                "first_s": round(statistics.median(r["first_s"] for r in runs), 3),
                "run_s": round(statistics.median(r["run_s"] for r in runs), 2),
                "open_s": round(statistics.median(r["open_s"] for r in runs), 2),
                "peak_mb": round(max(r["peak_mb"] for r in runs)),
                "file_mb": round(sum(p.stat().st_size for p in path.parent.glob("*") if p.suffix != ".npy") / 1e6),
                "relative_error": float(f"{np.linalg.norm(out - reference) / np.linalg.norm(reference):.2e}"),
            }
        base = rows[EXPORTED]
        for row in rows.values():
            row["time_ratio"] = round(row["call_s"] / base["call_s"], 3)
            row["run_ratio"] = round(row["run_s"] / base["run_s"], 3)
            row["peak_ratio"] = round(row["peak_mb"] / base["peak_mb"], 3)
        results[f"{size} px"] = rows
        print(table(
            [f"{size} px", "first call s", "later calls s", "ratio", "20 calls s", "ratio", "peak MB", "ratio",
             "file MB", "to open s", "error"],
            [[label, f"{r['first_s']:.2f}", f"{r['call_s']:.2f}", f"{r['time_ratio']:.2f}", f"{r['run_s']:.1f}",
              f"{r['run_ratio']:.2f}", r["peak_mb"], f"{r['peak_ratio']:.2f}", r["file_mb"], f"{r['open_s']:.1f}",
              f"{r['relative_error']:.1e}"] for label, r in rows.items()],
        ))  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--calls", type=int, default=5, help="of each variant; those after the second are 'later'")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/unet"), help="where the variants lie (15 GB)")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1], int(args.child[2]), int(args.child[3]))
    elif args.prepare:
        make(args.prepare)
    else:
        write("unet", measure(args.work, args.sizes, args.calls, args.rounds), PACKAGES)


if __name__ == "__main__":
    main()
