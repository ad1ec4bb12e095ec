"""The same picture on the GPU in fp16 as on the CPU in fp32: Stable Diffusion of random weights, the built-in model."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

import edgediff
from benchmarks.gpu_place import PROMPT, SEED, Place
from benchmarks.sections import Findings
from edgediff.compare import psnr, relative
from edgediff.verify import prove

REFERENCE = "reference.npz"
ASKED = (PROMPT, "a tiger on a green background", "a cactus on a yellow background")


def reference(findings: Findings, place: Place) -> None:
    """The picture that others are held against: the CPU, fp32, the host's loop."""
    start = time.perf_counter()
    pipe = edgediff.load(place.folder / "sd-fp32").warm()
    opened = time.perf_counter()
    request = place.request(pipe)
    made = pipe(**request)
    findings.figures |= {
        "opens_s": round(opened - start, 2),
        "picture_s": round(time.perf_counter() - opened, 2),
        "request": {name: v for name, v in request.items() if name != "prompt"}
        | {"sampler": pipe.bundle.defaults.sampler},
        "deviation": round(float(made.images[0].std()), 3),
    }
    np.savez(place.notes / REFERENCE, picture=made.images[0], latents=made.latents)


def parity(findings: Findings, place: Place) -> None:
    """The fp16 bundle on the GPU: torch's stored values, then the reference's picture at full size."""
    pipe = place.pipeline("sd")
    for found in prove(pipe):
        findings.check(f"verify: {found.what}", found.ok, found.detail)
    floor = float(pipe.bundle.parity["pictures"]["floor"])
    made = pipe(**place.request(pipe))
    findings.figures |= against_reference(findings, place, "this picture", made.images[0], floor)
    again = pipe(**place.request(pipe)).images[0]
    findings.check("the same bytes from run to run", np.array_equal(again, made.images[0]))
    if findings.figures["psnr"] is None:
        return
    with np.load(place.notes / REFERENCE) as kept:
        error, ceiling = relative(made.latents, kept["latents"]), float(pipe.bundle.parity["unet"]["ceiling"])
        findings.figures["latents_relative"] = float(f"{error:.3e}")
        findings.check("its latents are the CPU's", error <= ceiling, f"{error:.1e} (relative), at most {ceiling:g}")
        other = pipe(**place.request(pipe, seed=SEED + 1)).images[0]
        # What another picture of such weights gives: were it near the floor, the floor would prove nothing.
        findings.figures["another_seed_psnr"] = round(psnr(other, kept["picture"]), 2)


def against_reference(findings: Findings, place: Place, name: str, picture: Any, floor: float) -> dict[str, Any]:
    """PSNR to the reference, checked."""
    if not (place.notes / REFERENCE).exists():
        findings.check(f"{name} is the CPU's in fp32", False, "the reference was not drawn")
        return {"psnr": None, "floor": floor}
    with np.load(place.notes / REFERENCE) as kept:
        found = psnr(picture, kept["picture"])
    findings.check(f"{name} is the CPU's in fp32", found >= floor, f"PSNR {found:.1f} dB, at least {floor:g}")
    return {"psnr": round(found, 2), "floor": floor}


def emoji(findings: Findings, place: Place) -> None:
    """The built-in model: in fp16, and as it is shipped (fp32 arithmetic), on the GPU; against fp32 on the CPU."""
    host = edgediff.load()
    own = host.bundle.defaults
    request: dict[str, Any] = {"num_inference_steps": place.steps, "output_type": "np"}
    request |= {"guidance_scale": own.guidance_scale, "sampler": own.sampler}  # an export alone has others
    asked = [(prompt, seed) for prompt in ASKED for seed in range(1 if place.dry else 4)]
    wanted = [host(prompt, seed=seed, **request) for prompt, seed in asked]
    for name, bundle in (("fp16", "emoji"), ("as shipped", None)):
        pipe = place.pipeline(bundle)
        floor = float(pipe.bundle.parity["pictures"]["floor"])
        made = [pipe(prompt, seed=seed, **request) for prompt, seed in asked]
        pairs = list(zip(made, wanted, strict=True))
        found = [psnr(a.images[0], b.images[0]) for a, b in pairs]
        findings.figures[name] = {
            "pictures": len(found),
            "psnr_least": round(min(found), 2),
            "psnr_median": round(statistics.median(found), 2),
            "floor": floor,
            "latents_relative_worst": float(f"{max(relative(a.latents, b.latents) for a, b in pairs):.3e}"),
        }
        findings.check(f"{name}: the CPU's pictures", min(found) >= floor, f"{min(found):.1f} dB, at least {floor:g}")
