"""A checked request, run: encode, choose, loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np

from ..arrays import Float32, finite, require_finite
from ..device.base import Device
from ..engines.choose import Parts
from ..sampling import loop
from ..sampling.loop import Denoise, LoopStep
from .autoencoder import Autoencoder
from .denoiser import denoiser
from .encode_prompts import encode_prompts
from .masks import channels
from .request import Request
from .runner_pool import RunnerPool, device_engine, run_on_device
from .step import Step
from .watch import Watch


def run(request: Request, parts: Parts, device: Device | None, runners: RunnerPool) -> Generator[Step, None, None]:
    """Yield a step after every U-Net call; closing the iterator cancels.

    Args:
        request: what is asked for.
        parts: the engines, from the first call to the last.
        device: where the loop may run beside them; None is the host.
        runners: the device's loops, kept from request to request.
    """
    bundle, latent, plan, watch = parts.bundle, parts.bundle.latent, request.plan, Watch(request.deadline)
    size = (request.height // latent.factor, request.width // latent.factor)
    state, sample = (latent.channels, *size), (bundle.unet_channels, *size)
    autoencoder, total = Autoencoder(parts), len(plan.rows)

    def noise() -> Float32:
        return np.concatenate([s.randn((1, *state)) for s in streams])

    with watch.stage("encoding the prompts", "the encoded prompts"):
        conditioning = encode_prompts(request, parts)
        engine = device_engine(request, conditioning, parts, device, sample)
    with watch.stage(f"drawing the noise of {len(request.seeds)} images", "the first noise"):
        streams = [request.generator(seed) for seed in request.seeds]
        x, extra = request.latents, None
        if x is None and (request.masked is not None or engine is None):
            x = noise()
    if request.masked is not None:  # its noise comes after the latents', as in diffusers
        with watch.stage("encoding the picture", "the encoded picture"):
            extra = channels(request.masked, latent, autoencoder.encode, noise, len(streams))
    if device is not None and engine is not None:
        shape = (len(streams), *state)
        steps = run_on_device(plan, device, engine, bundle, runners, shape, streams, x, conditioning, extra)
        with closing(steps):  # leaving the loop gives the runner back at once
            for k, (runner, values) in enumerate(watch.over(steps, total)):
                yield Step(k, total, request, autoencoder, values, watch, runner)
        return
    assert x is not None
    with watch.stage("opening the U-Net", "the opened U-Net"):
        denoise = denoiser(conditioning, parts, sample, {row.guided for row in plan.rows}, extra)
    for k, step in enumerate(watch.over(_on_host(request, denoise, x, noise), total)):
        yield Step(k, total, request, autoencoder, step, watch)


def _on_host(request: Request, denoise: Denoise, x: Float32, noise: Callable[[], Float32]) -> Iterator[LoopStep]:
    """The host loop, which stops at values that are not finite and names the part that gave them."""
    plan = request.plan
    if plan.start != 1.0:
        x = x * np.float32(plan.start)
    for k, step in enumerate(loop.run(plan, denoise, x, noise, request.combiner())):
        if not finite(step.after):
            for part, out in (("unet", step.c), ("unet", step.u), ("guidance", step.m)):
                if out is not None:
                    require_finite(part, out)
            require_finite(f"sampler {plan.sampler}, step {k + 1},", step.after)
        yield step
