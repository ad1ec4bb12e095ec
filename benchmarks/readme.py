"""Every figure in the READMEs, written from benchmarks/results/*.json between markers, so that none can drift.

    python -m benchmarks.readme [--check]

``<!-- begin: NAME -->`` and ``<!-- end: NAME -->`` enclose the table NAME, and the line that says by what command, on
which machine and with which versions it was measured. ``--check`` writes nothing, and exits with 1 where a README holds
something else than its results say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS, table

DOCUMENTS = ("README.md", "benchmarks/README.md", "edgediff/README.md")
SECTION = re.compile(r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
MARKER = re.compile(r"<!-- (?:begin|end): [\w-]+ -->")
SHOWN_STEPS = (4, 8, 16, 32)
PRECISIONS = ("fp32", "fp16", "fp16-weights", "int8", "int8-dynamic")
NAMES = {"numpy": "NumPy", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "python": "Python"}


def read(name: str) -> dict[str, Any]:
    """One benchmark's JSON."""
    facts: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return facts


def source(facts: dict[str, Any]) -> str:
    """Command, machine and versions, as a line."""
    command = re.sub(r" --work \S+", "", facts["command"])  # where files lay changes no figure
    machine = facts["machine"]
    used = [f"{NAMES.get(k, k)} {v}" for k, v in facts["versions"].items() if v != "not installed"]
    return f"`{command}`; {machine['cpu']}, {machine['cores']} cores, {machine['system']}; {', '.join(used)}."


def quality(results: dict[str, Any]) -> str:
    """Whether the built-in model draws what it is asked for."""
    default = list(results["measures"])[-1]
    return table(
        ["", "background right", "object top-1 (CLIP)", "top-5 (CLIP)", "top-1 (pixels)", "top-5 (pixels)"],
        [
            [name + (" (the default)" if name == default else " (off)"), *(f"{v:.1%}" for v in measures.values())]
            for name, measures in results["measures"].items()
        ],
    )


def oracle(results: dict[str, Any]) -> str:
    """The tables alone, and whole runs, beside diffusers and k-diffusion."""
    rows = []
    for sampler, name in results["oracles"].items():
        cases = [v for key, v in results["tables"].items() if key.split()[0] == sampler]
        worst = [f"{max(v[kind] for v in cases):.1e}" for kind in ("float64", "float32")]
        latents = results["latents"].get(sampler)
        rows.append([f"`{sampler}`", name, len(cases), *worst, "" if latents is None else f"{latents:.1e}"])
    return table(["", "oracle", "cases", "float64", "float32", "final latents"], rows)


def families(results: dict[str, Any]) -> str:
    """Every family of models beside diffusers' own pipeline."""
    return table(
        ["family", "given as", "class", "parts", "worst part, relative", "final result, largest difference"],
        [
            [r["family"], r["as"], r["class"], len(r["parts"]), f"{r['part_error']:.0e}", f"{r['latents']:.0e}"]
            for r in results["rows"]
        ],
    )


def precisions(results: dict[str, Any]) -> str:
    """What each precision costs the pictures of the built-in model."""
    rows = []
    for name, r in results["measures"].items():
        shares = [f"{r[key]:.1%}" for key in ("background", "clip_top1", "clip_top5", "pixel_top1")]
        distances = ["", ""] if name == "fp32" else [f"{r[key]:.1f} dB" for key in ("psnr_median", "psnr_least")]
        rows.append([f"`{name}`", *shares, *distances, f"{r['unet_relative_error']:.0e}", f"{r['unet_mb']:.1f}"])
    return table(
        ["", "background right", "object top-1 (CLIP)", "top-5 (CLIP)", "top-1 (pixels)", "PSNR to fp32, median",
         "least", "U-Net's relative error", "U-Net MB"],
        rows,
    )  # fmt: skip


def unet(results: dict[str, Any], size: str) -> str:
    """One call of SD 1.5's U-Net at its true size."""
    rows = []
    for name, r in results[size].items():
        error = f"{r['relative_error']:.0e}" if r["relative_error"] else ""
        rows.append(
            [name, f"{r['first_s']:.1f} s", f"{r['call_s']:.2f} s", f"{r['time_ratio']:.2f}", f"{r['run_s']:.0f} s",
             f"{r['run_ratio']:.2f}", f"{r['peak_mb']} MB", f"{r['peak_ratio']:.2f}", f"{r['file_mb']} MB",
             f"{r['open_s']:.1f} s", error]
        )  # fmt: skip
    return table(
        [size, "first call", "later calls", "ratio", "20 calls", "ratio", "peak memory", "ratio", "U-Net file",
         "opens in", "error"],
        rows,
    )  # fmt: skip


def samplers(results: dict[str, Any]) -> str:
    """How near each sampler comes to the reference, and with how many U-Net calls."""
    entries = {(e["sampler"], e["spacing"]): e for e in results["convergence"]}
    rows = []
    for (name, spacing), trailing in entries.items():
        if spacing == "trailing":
            psnr = [f"{trailing['psnr'][results['steps'].index(n)]:.1f}" for n in SHOWN_STEPS]
            goals = [e[f"calls_to_{goal}_dB"] for e in (trailing, entries[name, "karras"]) for goal in (35, 40)]
            rows.append([f"`{name}`", *psnr, *(goal or "" for goal in goals)])
    rows.sort(key=lambda row: (row[6] or 99, row[5] or 99, -float(row[3])))
    steps = [f"{SHOWN_STEPS[0]} steps", *SHOWN_STEPS[1:]]
    goals = ["calls to 35 dB", "to 40 dB", "Karras: to 35 dB", "to 40 dB"]
    return table(["", *steps, *goals], rows)


def guidance(results: dict[str, Any]) -> str:
    """What an interval of guidance saves."""
    rows = [[name, f"{ratio:.2f}"] for name, ratio in results["time_ratio"].items()]
    return table(["guidance in shares of the run", "time of a picture, ratio"], rows)


def cold_start(results: dict[str, Any]) -> str:
    """From process start to a PNG."""
    seconds, ratio = results["seconds"], results["diffusers_over_edgediff"]
    spread = f"{ratio['min']:.1f} to {ratio['max']:.1f} times as long, pair by pair"
    return table(
        ["process start to end, median of 5", ""],
        [
            ["edgediff, 20 DDIM steps to a PNG", f"{seconds['edgediff']['median']:.2f} s"],
            ["diffusers, the same weights", f"{seconds['diffusers']['median']:.2f} s ({spread})"],
            ["`import edgediff` over `import numpy`", f"{results['import_over_numpy_s']:.3f} s"],
        ],
    )


def overhead(results: dict[str, Any]) -> str:
    """How much of a call is not engine."""
    ratio = results["total_over_engines"]
    return table(
        ["the built-in model, warm, 20 steps of its default sampler", ""],
        [
            ["a picture", f"{results['total_s']:.3f} s"],
            ["one U-Net call", f"{results['unet_call_ms']:.1f} ms"],
            ["a picture over the sum of its engine calls", f"{ratio['median']:.3f} ({ratio['min']:.3f} to "
             f"{ratio['max']:.3f})"],
        ],
    )  # fmt: skip


def isolation(results: dict[str, Any]) -> str:
    """What running a bundle in a child costs."""
    drawn, passed = results["pictures"], results["passing"]
    ratio = drawn["ratio"]
    return table(
        ["", "in the process", "isolated"],
        [
            ["the built-in model, 20 steps, warm", f"{drawn['picture_s']:.3f} s", f"{drawn['picture_isolated_s']:.3f} s"
             f" (pair by pair {ratio['median']:.2f} times, {ratio['min']:.2f} to {ratio['max']:.2f})"],
            ["opening all its parts", f"{drawn['open_s']:.2f} s", f"{drawn['open_isolated_s']:.2f} s"],
            ["a call that does next to nothing, with the arrays of SD 1.5's U-Net", f"{passed['call_ms']:.2f} ms",
             f"{passed['call_isolated_ms']:.2f} ms"],
            ["memory of the child", "", f"{drawn['child_own_mb']} MB of its own"],
        ],
    )  # fmt: skip


def twin(results: dict[str, Any]) -> str:
    """The compiled update beside NumPy's."""
    rows = []
    for name, figure in results["host_twin"]["figures"].items():
        if "ratio" in figure:
            rows.append([name, f"{figure['numpy_us']:.1f} us", f"{figure['twin_us']:.1f} us", f"{figure['ratio']:.2f}"])
    return table(["one update", "NumPy", "compiled", "NumPy over compiled"], rows)


def stub(results: dict[str, Any]) -> str:
    """What a step of the device loop costs the host."""
    rows = [[name, f"{us['later']:.2f} us", f"{us['whole']:.2f} us"] for name, us in results["us_a_step"].items()]
    return table(["the host's time a step, of 20", "a later step", "with the run's preparation"], rows)


RIVAL_ROWS: dict[str, tuple[str, str]] = {  # label, and how a value is written
    "picture_s": ("process start to a PNG", "{:.2f} s"),
    "import_s": ("`import` alone", "{:.2f} s"),
    "installed_mb": ("installed", "{:,.0f} MB"),
    "peak_mb": ("peak memory", "{:,.0f} MB"),
    "warm_s": ("a picture, warm", "{:.2f} s"),
}


def rivals(results: dict[str, Any], rows: int | None = None) -> str:
    """edgediff beside other ways to the same picture; the best of each row is bold."""
    found = results["rivals"]

    def cell(key: str, form: str, value: float | None) -> str:
        if value is None:
            return "not measured"
        best = value == min(r[key] for r in found.values())
        return f"**{form.format(value)}**" if best else form.format(value)

    out = []
    for key, (label, form) in list(RIVAL_ROWS.items())[:rows]:
        out.append([label, *(cell(key, form, r[key]) for r in found.values())])
    return table(["", *found], out)


def rival_versions(facts: dict[str, Any]) -> str:
    """The line of ``source``, with the versions that matter of each environment."""
    shown = {"edgediff": ("onnxruntime", "numpy"), "diffusers": ("torch", "diffusers", "transformers"),
             "OpenVINO GenAI": ("openvino-genai", "openvino")}  # fmt: skip
    packages = {name: facts["results"]["rivals"][name]["packages"] for name in shown}
    used = {k: packages[name][k] for name, keys in shown.items() for k in keys}
    return source(facts | {"versions": facts["versions"] | used})


def optimum(results: dict[str, Any]) -> str:
    """edgediff beside optimum's pipeline, on the folder that optimum wrote."""
    about = f"SD 1.5 at 1/{results['divide']} of its widths, {results['side']} px, {results['steps']} steps"
    more = [["the folder", *[f"{results['folder_mb']:,.0f} MB"] * 2]]
    more.append(["largest difference of the pictures", *[f"{results['difference']} of 255"] * 2])
    head, *rest = rivals(results).splitlines()
    return "\n".join([head.replace("|  |", f"| {about} |", 1), *rest, *table([], more).splitlines()[2:]])


def optimum_versions(facts: dict[str, Any]) -> str:
    """The line of ``source``, with the versions that matter of each environment."""
    shown = {"edgediff": ("onnxruntime", "numpy"), "optimum": ("optimum-onnx", "optimum", "torch", "diffusers",
             "transformers")}  # fmt: skip
    packages = {name: facts["results"]["rivals"][name]["packages"] for name in shown}
    used = {k: packages[name][k] for name, keys in shown.items() for k in keys}
    return source(facts | {"versions": facts["versions"] | used})


def section(
    name: str, make: Callable[[dict[str, Any]], str], told: Callable[[dict[str, Any]], str] | None = source
) -> str:
    """One table, with the line that says where it comes from."""
    facts = read(name)
    return "\n".join([make(facts["results"]), *([] if told is None else ["", told(facts)])])


MODELS = {"sd15": "SD 1.5", "sdxl": "SDXL"}


def exports(results: dict[str, Any]) -> str:
    """What an export takes."""
    return table(
        ["model", "precision", "minutes", "memory of its own", "with pages of files", "bundle", "disk on the way",
         "U-Net's relative error"],
        [
            [MODELS[r["model"]], f"`{r['precision']}`", f"{r['minutes']:.1f}", f"{r['own_memory_gb']:.1f} GB",
             f"{r['memory_with_pages_gb']:.1f} GB", f"{r['bundle_gb']:.1f} GB", f"{r['disk_gb']:.1f} GB",
             f"{r['unet_relative']:.0e}"]
            for r in sorted(results["rows"], key=lambda r: (r["model"], list(PRECISIONS).index(r["precision"])))
        ],
    )  # fmt: skip


def large(results: dict[str, Any]) -> str:
    """SDXL at its true size."""
    return table(
        ["precision", "latents beside diffusers', 256 px", "`release_parts`", "U-Net call, 1024 px",
         "memory of its own", "with pages of files"],
        [
            [f"`{r['precision']}`", f"{r['latents']:.0e} of {r['largest_latent']:g}",
             "yes" if r["release_parts"] else "no", f"{r['call_seconds']:.0f} s", f"{r['own_memory_gb']:.1f} GB",
             f"{r['memory_with_pages_gb']:.1f} GB"]
            for r in results["rows"]
        ],
    )  # fmt: skip


TRIED = {  # label of each run, and the names of its figures
    "bundles": "damaged bundles",
    "foreign": "damaged folders of another exporter",
    "manifests": "damaged manifests",
    "arguments": "sets of arguments",
    "lines": "command lines",
    "pictures": "pictures and masks",
    "loras": "LoRAs and textual inversions",
    "traced": "bundles under strace",
    "threads": "requests by 8 threads",
    "cancels": "cancelled calls",
    "soak": "requests to one pipeline",
    "kill-generate": "kills of `generate`",
    "kill-export": "kills of `export`",
    "kill-build": "kills of `build` (over a stand-in for TensorRT)",
}


def trust(results: dict[str, Any]) -> str:
    """What was tried at length, and what was found."""
    return table(["tried", "", "found"], [trust_row(name, results[name]) for name in TRIED if name in results])


def trust_row(name: str, facts: dict[str, Any]) -> list[Any]:
    """One line: how many of what, and what became of them."""
    if name in ("threads", "cancels", "soak"):
        count = facts.get("requests", facts.get("cancels"))
        found = f"{facts['differ']} pictures differ"
        grown = f"; memory grew by {facts['growth_mb']} MB" if "growth_mb" in facts else ""
        return [TRIED[name], f"{count:,}", found + grown]
    if name == "traced":
        return [
            TRIED[name],
            f"{facts['cases']:,}",
            f"{facts['outside']} of {facts['calls']:,} calls outside the folder",
        ]
    if name.startswith("kill-"):
        bad = sum(facts[found] for found in ("half", "failed", "different", "left_over"))
        return [TRIED[name], f"{facts['hits']:,} that hit", f"{bad} half files, leftovers, failures or other results"]
    bad = sum(facts.get(verdict, 0) for verdict in ("untyped", "crashed", "hung", "memory", "outside", "printed"))
    found = f"{facts['worked']:,} worked, {facts['refused']:,} refused, **{bad}** anything else"
    return [TRIED[name], f"{facts['cases']:,}", f"{found}; the longest took {facts['longest_cpu_s']} s"]


def memory(results: dict[str, Any]) -> str:
    """What calls are predicted to take, beside what they take."""
    rows = [
        [r["model"], f"{r['side']} px", r["images"], f"{r['predicted_mb']:,} MB", f"{r['measured_mb']:,} MB",
         f"{r['predicted_mb'] / r['measured_mb']:.2f}"]
        for r in results["rows"]
    ]  # fmt: skip
    return table(["", "size", "pictures", "predicted, at least", "measured", "ratio"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "rivals-short": partial(section, "rivals", partial(rivals, rows=4), rival_versions),
    "rivals": partial(section, "rivals", rivals, rival_versions),
    "optimum": partial(section, "optimum", optimum, optimum_versions),
    "cold-start": partial(section, "cold_start", cold_start),
    "overhead": partial(section, "overhead", overhead),
    "isolation": partial(section, "isolation", isolation),
    "quality": partial(section, "quality", quality),
    "oracle": partial(section, "oracle", oracle),
    "families": partial(section, "families", families),
    "precisions": partial(section, "precisions", precisions),
    "exports": partial(section, "exports", exports),
    "large": partial(section, "large", large),
    "memory": partial(section, "memory", memory),
    "unet-512": partial(section, "unet", partial(unet, size="512 px"), None),
    "unet-256": partial(section, "unet", partial(unet, size="256 px")),
    "samplers": partial(section, "samplers", samplers),
    "guidance": partial(section, "guidance", guidance),
    "trust": partial(section, "trust", trust, lambda facts: source(facts | {"command": "python -m benchmarks.trust"})),
    "kernels": partial(section, "kernel-cpu", twin),
    "stub": partial(section, "stub", stub),
}


def written(text: str) -> str:
    """A document with every table made anew.

    Raises:
        ValueError: a marker without its other end, or with a name that no table has.
    """
    found = [match[2] for match in SECTION.finditer(text)]
    if len(MARKER.findall(text)) != 2 * len(found) or len(set(found)) != len(found):
        raise ValueError("every begin marker needs its own end, once")
    if unknown := [name for name in found if name not in TABLES]:
        raise ValueError(f"no table {unknown[0]!r}; choose from {', '.join(TABLES)}")
    return SECTION.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something drifted")
    args = parser.parse_args()
    drifted, placed = [], set[str]()
    for name in DOCUMENTS:
        path = REPOSITORY / name
        before = path.read_text(encoding="utf-8")
        placed |= {match[2] for match in SECTION.finditer(before)}
        after = written(before)
        if after != before:
            drifted.append(name)
            if not args.check:
                path.write_text(after, encoding="utf-8")
    if missing := sorted(set(TABLES) - placed):
        print(f"no README shows {', '.join(missing)}", file=sys.stderr)
        return 1
    for name in drifted:
        print(f"{name}: {'differs from benchmarks/results' if args.check else 'written'}")
    return int(args.check and bool(drifted))


if __name__ == "__main__":
    sys.exit(main())
