"""The same picture on the GPU in fp16 as on the CPU in fp32: Stable Diffusion of random weights, the built-in model."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

import edgediff
from benchmarks.gpu.testbed import PROMPT, SEED, Testbed
from benchmarks.sections import Report
from edgediff.compare import psnr, relative
from edgediff.verify import prove

REFERENCE = "reference.npz"
ASKED = (PROMPT, "a tiger on a green background", "a cactus on a yellow background")


def reference(report: Report, testbed: Testbed) -> None:
    """Draw what others are held against: on the CPU, in fp32, by the host's loop."""
    start = time.perf_counter()
    pipe = edgediff.load(testbed.folder / "sd-fp32").warm()
    opened = time.perf_counter()
    request = testbed.request(pipe)
    made = pipe(**request)
    report.figures |= {
        "opens_s": round(opened - start, 2),
        "picture_s": round(time.perf_counter() - opened, 2),
        "request": {name: v for name, v in request.items() if name != "prompt"}
        | {"sampler": pipe.bundle.defaults.sampler},
        "deviation": round(float(made.images[0].std()), 3),
    }
    np.savez(testbed.notes / REFERENCE, picture=made.images[0], latents=made.latents)


def parity(report: Report, testbed: Testbed) -> None:
    """Hold the fp16 bundle on the GPU against torch's stored values, then against the reference's picture."""
    pipe = testbed.pipeline("sd")
    for found in prove(pipe):
        report.check(f"verify: {found.what}", found.ok, found.detail)
    floor = float(pipe.bundle.parity["pictures"]["floor"])
    made = pipe(**testbed.request(pipe))
    report.figures |= against_reference(report, testbed, "this picture", made.images[0], floor)
    again = pipe(**testbed.request(pipe)).images[0]
    report.check("the same bytes from run to run", np.array_equal(again, made.images[0]))
    if report.figures["psnr"] is None:
        return
    with np.load(testbed.notes / REFERENCE) as kept:
        error, ceiling = relative(made.latents, kept["latents"]), float(pipe.bundle.parity["unet"]["ceiling"])
        report.figures["latents_relative"] = float(f"{error:.3e}")
        report.check("its latents are the CPU's", error <= ceiling, f"{error:.1e} (relative), at most {ceiling:g}")
        other = pipe(**testbed.request(pipe, seed=SEED + 1)).images[0]
        # What another picture of such weights gives: were it near the floor, the floor would prove nothing.
        report.figures["another_seed_psnr"] = round(psnr(other, kept["picture"]), 2)


def against_reference(report: Report, testbed: Testbed, name: str, picture: Any, floor: float) -> dict[str, Any]:
    """Give the PSNR to the reference, and check it."""
    if not (testbed.notes / REFERENCE).exists():
        report.check(f"{name} is the CPU's in fp32", False, "the reference was not drawn")
        return {"psnr": None, "floor": floor}
    with np.load(testbed.notes / REFERENCE) as kept:
        found = psnr(picture, kept["picture"])
    report.check(f"{name} is the CPU's in fp32", found >= floor, f"PSNR {found:.1f} dB, at least {floor:g}")
    return {"psnr": round(found, 2), "floor": floor}


def emoji(report: Report, testbed: Testbed) -> None:
    """Hold the built-in model on the GPU, in fp16 and as it is shipped, against the CPU in fp32."""
    host = edgediff.load()
    own = host.bundle.defaults
    request: dict[str, Any] = {"num_inference_steps": testbed.steps, "output_type": "np"}
    request |= {"guidance_scale": own.guidance_scale, "sampler": own.sampler}  # an export alone has others
    asked = [(prompt, seed) for prompt in ASKED for seed in range(1 if testbed.dry else 4)]
    wanted = [host(prompt, seed=seed, **request) for prompt, seed in asked]
    for name, bundle in (("fp16", "emoji"), ("as shipped", None)):
        pipe = testbed.pipeline(bundle)
        floor = float(pipe.bundle.parity["pictures"]["floor"])
        made = [pipe(prompt, seed=seed, **request) for prompt, seed in asked]
        pairs = list(zip(made, wanted, strict=True))
        found = [psnr(a.images[0], b.images[0]) for a, b in pairs]
        report.figures[name] = {
            "pictures": len(found),
            "psnr_least": round(min(found), 2),
            "psnr_median": round(statistics.median(found), 2),
            "floor": floor,
            "latents_relative_worst": float(f"{max(relative(a.latents, b.latents) for a, b in pairs):.3e}"),
        }
        report.check(f"{name}: the CPU's pictures", min(found) >= floor, f"{min(found):.1f} dB, at least {floor:g}")
