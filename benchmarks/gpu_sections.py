"""The sections of ``benchmarks.gpu``. Each runs in a process of its own."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgediff
from benchmarks import gpu_torch
from benchmarks.gpu_ours import SAMPLER, Peak, Run, timed, unet_call, used_mb
from benchmarks.sections import Findings
from edgediff.engines import Provider
from edgediff.verify import psnr

LATENTS, FLOOR = 2e-2, 35.0  # fp16 against fp32: relative error of final latents, and PSNR in dB, as at export
EMOJI = ("a red apple on a blue background", "a tiger on a green background", "a rocket on a yellow background")
OPTIONS: dict[str, dict[str, str]] = {
    "as it is": {},
    "NHWC": {"prefer_nhwc": "1"},
    "heuristic convolutions": {"cudnn_conv_algo_search": "HEURISTIC"},
    "fused convolution and bias": {"fuse_conv_bias": "1"},
    "flash attention": {"sdpa_kernel": "1"},
    "memory-efficient attention": {"sdpa_kernel": "2"},
    "cuDNN's attention": {"sdpa_kernel": "8"},
    "no TF32": {"use_tf32": "0"},
    "its own CUDA graph": {"enable_cuda_graph": "1"},
    "NHWC and its own CUDA graph": {"prefer_nhwc": "1", "enable_cuda_graph": "1"},
}


def _cells(pipe: Any) -> tuple[int, int]:
    bundle = pipe.bundle
    return bundle.defaults.height // bundle.latent.factor, bundle.defaults.width // bundle.latent.factor


def _shown(seconds: Sequence[float]) -> dict[str, float]:
    middle = statistics.median(seconds)
    return {"picture_s": round(middle, 4), "pictures_per_s": round(1 / middle, 3), "least_s": round(min(seconds), 4)}


def ours(run: Run, findings: Findings, engine: str = "onnx", providers: Sequence[Provider] | None = None) -> None:
    """Pictures a second from text to pixels; time around the U-Net's calls; peak memory."""
    before = used_mb(run.dry)
    with Peak(run.dry) as peak:
        pipe = run.pipe(engine, providers)
        seconds = timed(lambda: pipe(**run.call(seed=1), sampler=SAMPLER, output_type="np"), run.pictures)
        findings.figures |= _shown(seconds)

        def latents(steps: int) -> float:
            call = run.call(seed=1, num_inference_steps=steps)
            return statistics.median(timed(lambda: pipe(**call, sampler=SAMPLER, output_type="latent"), run.pictures))

        step = (latents(run.steps + 1) - latents(1)) / run.steps
    alone = unet_call(pipe, _cells(pipe), run.steps)
    findings.figures |= {
        "step_ms": round(1e3 * step, 3),
        "unet_ms": round(1e3 * alone["call_s"], 3),
        "host_ms_a_call": round(1e3 * alone["host_s"], 3),
        "peak_mb": round(peak.mb - before),
    }
    findings.goal(f"time around the U-Net's calls, {engine}, % of a step", 100 * (1 - alone["call_s"] / step), "<= 1")


def options(run: Run, findings: Findings) -> None:
    """One U-Net call under each of the CUDA provider's options, and by the graph without fused attention."""
    for name, chosen in OPTIONS.items():
        try:
            pipe = run.pipe(providers=None if run.dry else [("CUDAExecutionProvider", chosen)])
            findings.figures[name] = _rounded(unet_call(pipe, _cells(pipe), run.steps))
            pipe.close()
        except edgediff.EngineError as error:
            findings.figures[name] = {"refused": str(error)[:300]}
    pipe = run.pipe()
    plain = _plain_graph(run, pipe)
    findings.figures["attention written out"] = _rounded(unet_call(plain, _cells(plain), run.steps))


def _plain_graph(run: Run, pipe: Any) -> Any:
    from edgediff.engines.onnxruntime import open_session
    from edgediff.engines.plans import source

    path = source(pipe.bundle, "unet").path
    pipe.set_engine("unet", open_session("unet", path, pipe.bundle.parts["unet"], None, pipe._device))
    return pipe


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name.replace("_s", "_ms"): round(1e3 * value, 3) for name, value in values.items()}


def eager(run: Run, findings: Findings) -> None:
    """diffusers as it is."""
    _diffusers(run, findings, compiled=False)


def compiled(run: Run, findings: Findings) -> None:
    """diffusers with its U-Net under torch.compile, channels last."""
    _diffusers(run, findings, compiled=True)


def _diffusers(run: Run, findings: Findings, compiled: bool) -> None:
    if reason := gpu_torch.why_not(run.place):
        findings.figures["skipped"] = reason
        return
    import torch

    before = used_mb(run.dry)
    with Peak(run.dry) as peak:
        pipe = gpu_torch.pipeline(run.folder, run.place, "float32" if run.dry else "float16")
        if compiled:
            pipe.unet.to(memory_format=torch.channels_last)
            backend = {"backend": "eager"} if run.dry else {"mode": "reduce-overhead"}
            pipe.unet = torch.compile(pipe.unet, fullgraph=True, **backend)

        def work() -> None:
            generator = torch.Generator().manual_seed(1)
            gpu_torch.picture(pipe, run.call(generator=generator), None, "np")

        work()  # the first compiles
        findings.figures |= _shown(timed(work, run.pictures))
    findings.figures["peak_mb"] = round(peak.mb - before)
    if not run.dry:
        findings.figures["torch_peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)


def parity(run: Run, findings: Findings, engine: str = "onnx") -> None:
    """The same picture as torch in fp32 with the same weights; and how far torch's own fp16 is."""
    pipe = run.pipe(engine)
    height, width = _cells(pipe)
    noise = np.random.default_rng(0).standard_normal((1, pipe.bundle.latent.channels, height, width), np.float32)
    made = pipe(**run.call(), sampler=SAMPLER, latents=noise, output_type="np")
    if reason := gpu_torch.why_not(run.place):
        findings.figures["skipped"] = reason
        return
    theirs = gpu_torch.pipeline(run.folder, run.place, "float32")
    exact = gpu_torch.picture(theirs, run.call(), noise, "latent")
    drawn = gpu_torch.picture(theirs, run.call(), noise, "np")
    _held(findings, "ours", made.latents, made.images, exact, drawn)
    if not run.dry:
        half = theirs.to("cuda", _half())
        latents = gpu_torch.picture(half, run.call(), noise, "latent")
        findings.figures["torch fp16"] = {"latents": _relative(latents, exact)}


def _half() -> Any:
    import torch

    return torch.float16


def _held(
    findings: Findings, name: str, latents: np.ndarray, images: np.ndarray, exact: np.ndarray, drawn: np.ndarray
) -> None:
    error, likeness = _relative(latents, exact), psnr(images, drawn)
    findings.figures[name] = {"latents": error, "psnr_db": round(likeness, 1)}
    findings.check(f"{name}: final latents within {LATENTS:g} of fp32", error <= LATENTS, error)
    findings.check(f"{name}: PSNR to the fp32 picture above {FLOOR:g} dB", likeness >= FLOOR, likeness)


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(f"{np.linalg.norm(found - wanted) / np.linalg.norm(wanted):.3e}")


def emoji(run: Run, findings: Findings) -> None:
    """The built-in model: the same pictures as on the CPU in fp32."""
    pipe, host = run.pipe(bundle=run.emoji or edgediff.load().bundle.root), edgediff.load()
    default = host.bundle.defaults
    settings = {"sampler": default.sampler, "guidance_scale": default.guidance_scale}
    settings |= {"num_inference_steps": default.num_inference_steps, "spacing": host.bundle.plan().spacing}
    for prompt in EMOJI:
        call = {"prompt": prompt, "seed": 3, "output_type": "np"} | settings
        made, wanted = pipe(**call), host(**call)
        _held(findings, prompt, made.latents, made.images, wanted.latents, wanted.images)


def tensorrt(run: Run, findings: Findings) -> None:
    """Plans built here: how long that takes, pictures a second, parity."""
    if importlib.util.find_spec("tensorrt") is None:
        findings.figures["skipped"] = "tensorrt is not installed"
        return
    from edgediff.bundle import read
    from edgediff.engines.building import Recipe, build_part
    from edgediff.engines.plans import Cache
    from edgediff.engines.preflight import builder
    from edgediff.engines.shapes import Ranges

    assert run.plans is not None
    bundle = read(run.folder)
    size = (bundle.defaults.width, bundle.defaults.height)
    recipe = Recipe(Ranges(1, size, size, size, 1))
    for part in bundle.needed:
        plan = build_part(bundle, part, recipe, builder(0), Cache(run.plans))
        findings.figures[f"build {part}"] = {"seconds": plan.seconds, "mb": round(plan.size / 1e6, 1)}
    ours(run, findings, "tensorrt")
    parity(run, findings, "tensorrt")


SECTIONS: dict[str, tuple[Any, int]] = {  # and seconds at most
    "ours": (ours, 90),
    "eager": (eager, 60),
    "compiled": (compiled, 150),
    "parity": (parity, 60),
    "emoji": (emoji, 40),
    "options": (options, 120),
    "tensorrt": (tensorrt, 240),
}


def ratios(found: dict[str, Any]) -> Findings:
    """Ours beside diffusers'."""
    findings = Findings()
    rates = {name: found.get(name, {}).get("figures", {}).get("pictures_per_s") for name in SECTIONS}
    for mine in ("ours", "tensorrt"):
        for theirs, goal in (("compiled", ">= 1"), ("eager", ">= 1")):
            if rates[mine] and rates[theirs]:
                findings.goal(f"pictures a second, {mine} over {theirs}", rates[mine] / rates[theirs], goal)
    return findings


def prepared(folder: Path) -> Path:
    """The folder that ``--prepare`` made; ``SystemExit`` where there is none."""
    if not (folder / "bundle.json").is_file():
        raise SystemExit(f"{folder} holds no prepared bundle; make one with --prepare")
    return folder
