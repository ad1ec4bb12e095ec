"""A replay runs the runtime's loop on diffusers' answers: what it asks must be what diffusers asked, call by call.

The U-Net's and the autoencoder's recorded outputs answer, so an error is not amplified by the model, however chaotic
it is, nor hidden by a coarse precision: prompts, sizes, schedule, sampler, guidance and scaling show by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.arrays import Float32
from edgediff.bundle.manifest import Bundle
from edgediff.compare import relative
from edgediff.errors import EngineError
from edgediff.generation.step import Result

from ..precision.precisions import Case
from .lazy_pipeline import Arrays, EngineCall, Opener, pipeline_of
from .reference import Reference

LIMIT = 1e-4  # relative, 2-norm; float32's rounding in both loops leaves some 1e-6
# From pure noise diffusers starts near the limit, at sigma 4096, and loses digits there; ours takes the limit itself.
ZERO_SNR_LIMIT = 1e-2
TIME_LIMIT = 0.01  # timesteps, absolute
LEVELS = 1  # of 255; two ways of rounding


@dataclass
class Replay:
    """A replay answers one picture's calls of a part in order, and holds their inputs against the recorded ones."""

    part: str
    picture: int
    calls: Sequence[Case]
    limit: float = LIMIT
    next: int = 0
    worst: float = 0.0

    def __call__(self, **inputs: NDArray[Any]) -> Arrays:
        if self.next == len(self.calls):
            self.fail(f"is called more often than the {len(self.calls)} times of diffusers")
        asked, answered = self.calls[self.next]
        self.next += 1
        if set(asked) != set(inputs):
            self.fail(f"is told {', '.join(sorted(inputs))}, by diffusers {', '.join(sorted(asked))}")
        for name, theirs in asked.items():
            self._hold(name, inputs[name], theirs)
        return dict(answered)

    def end(self) -> None:
        """Raise ``EngineError`` where diffusers called the part more often."""
        if self.next < len(self.calls):
            self.fail(f"is called {self.next} times, by diffusers {len(self.calls)} times")

    def _hold(self, name: str, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        if name == "timestep":
            error = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
            if not error <= TIME_LIMIT:
                self.fail(f"is told the timesteps {_few(ours)}, by diffusers {_few(theirs)}")
            return
        error = relative(ours, theirs)
        self.worst = max(self.worst, error)
        if not error <= self.limit:
            self.fail(f"is told {name} that is {error:.1e} (relative) from diffusers', at most {self.limit:g}")

    def fail(self, what: str) -> None:
        """Raise ``EngineError`` that names the call."""
        raise EngineError(
            f"{self.part}, call {self.next} of picture {self.picture + 1}: it {what}; this version does not run this "
            "model as diffusers does. If its scheduler is the reason, another default sampler (--sampler) may do; "
            "please report it with the source's configs"
        )


def _few(values: NDArray[Any]) -> str:
    return ", ".join(f"{v:g}" for v in values.reshape(-1)[:2])


def replay(
    bundle: Bundle,
    reference: Reference,
    calls: Sequence[Mapping[str, Any]],
    arrays: Sequence[Mapping[str, NDArray[Any]]],
    encoders: Mapping[str, Opener],
    size: int,
) -> float:
    """Run the loop on diffusers' answers, and return the largest error of what it asks, relative.

    Args:
        bundle: the draft, with its manifest.
        reference: what diffusers drew.
        calls, arrays: of the pictures.
        encoders: openers of the text encoders, which really run.
        size: of the model in fp32, bytes.

    Raises:
        EngineError: it asks something else, or draws another picture; the message names part, call and input.
    """
    worst, limit = 0.0, ZERO_SNR_LIMIT if bundle.schedule.rescale_betas_zero_snr else LIMIT
    for k, (call, extra, trace) in enumerate(zip(calls, arrays, reference.traces, strict=True)):
        replays = {
            part: Replay(part, k, trace.calls[part], limit)
            for part in ("unet", "vae_decoder", "vae_encoder")
            if part in bundle.parts
        }
        openers = {**encoders, **{part: _opener(answers) for part, answers in replays.items()}}
        pipe, _ = pipeline_of(bundle, openers, size)
        result: Result = pipe(**{**call, **extra, "output_type": "np"})
        for part, answers in replays.items():
            if part != "vae_encoder" or bundle.inpaints:  # else only the proof asked it
                answers.end()
            worst = max(worst, answers.worst)
        if trace.final is not None and "vae_decoder" not in replays:
            worst = max(worst, _hold_pixels(k, result.latents, trace.final, limit))
        drawn, wanted = result.array[0].astype(int), reference.pictures[k].astype(int)
        if drawn.shape != wanted.shape or np.abs(drawn - wanted).max() > LEVELS:
            raise EngineError(
                f"picture {k + 1}: what is made of the decoder's answer is not what diffusers makes of it "
                f"({np.abs(drawn - wanted).max() if drawn.shape == wanted.shape else drawn.shape} of 255)"
            )
    return worst


def _hold_pixels(picture: int, ours: Float32, theirs: NDArray[Any], limit: float) -> float:
    if not (error := relative(ours, theirs)) <= limit:
        raise EngineError(
            f"picture {picture + 1}: its pixels are {error:.1e} (relative) from diffusers', at most {limit:g}"
        )
    return error


def _opener(answers: Replay) -> Opener:
    def open_replay() -> EngineCall:
        return answers

    return open_replay
