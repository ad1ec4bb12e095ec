"""Which levels a run visits: those that a call names, those of a spacing, or those of the model's own scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import is_whole
from ..errors import ArgumentError, shown
from .names import resolve_spacing
from .samplers import Sampler
from .schedule import CLEAN, Level, Schedule
from .spacings import K_DIFFUSION, from_sigmas, from_timesteps, spaced


@dataclass(frozen=True)
class Visits:
    """Visits are the levels of one run, from noisy to clean, and how it starts and walks.

    Attributes:
        levels: one before each step, and the last.
        spacing: its name (see ``Plan.spacing``).
        start: factor of the unit starting noise.
        aims: where each step leads, where that is not the next level (see ``Sampler.strides``); else empty.
    """

    levels: tuple[Level, ...]
    spacing: str
    start: float
    aims: tuple[Level, ...] = ()


def visits(
    schedule: Schedule,
    entry: Sampler,
    named: str | None,
    steps: int | None,
    spacing: str | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
) -> Visits:
    """The visits of a run; ``named`` is the spacing in the sampler's name, the others are the arguments of ``plan``.

    Where neither call nor sampler names a spacing, it is that of the model's own scheduler, with all that diffusers'
    class does beside it: noise levels between the ends of its timesteps, timesteps cut down, steps by a stride.

    Raises:
        ArgumentError: arguments that exclude each other, levels that the schedule does not have.
    """
    if spacing is not None and (timesteps is not None or sigmas is not None):
        raise ArgumentError("spacing was given with timesteps or sigmas, which take its place; leave one out")
    if timesteps is not None and sigmas is not None:
        raise ArgumentError("timesteps and sigmas were both given; give one")
    if sigmas is not None:
        levels = from_sigmas(schedule, sigmas, rounded=entry.rounded)
        return _explicit(schedule, entry, steps, levels, clean=True)
    if timesteps is not None:
        return _explicit(schedule, entry, steps, from_timesteps(schedule, timesteps), clean=False)
    own = spacing is None and named is None and entry.spacing is None
    spacing = None if spacing is None else resolve_spacing(spacing)
    spacing = spacing or named or entry.spacing or schedule.sigma_spacing or schedule.timestep_spacing
    of_sigmas = own and schedule.sigma_spacing is not None and not schedule.flow
    ends = schedule.timestep_spacing if of_sigmas and not entry.rounded else None
    levels = spaced(
        schedule,
        20 if steps is None else steps,
        spacing,
        drop_last=entry.drop_last,
        rounded=entry.rounded or (entry.rounds_karras and of_sigmas and spacing == "karras"),
        clipped=entry.clipped,
        truncated=own,
        ends=ends,
    )
    levels = _ended(schedule, entry, levels, spacing in K_DIFFUSION)
    unit = entry.unit_start or schedule.flow or "leading" in (spacing, ends)
    start = 1.0 if unit else levels[0].sigma
    if own and entry.strides and spacing in ("trailing", "linspace") and not schedule.flow:
        stride = schedule.num_train_timesteps // (len(levels) - 1)
        aims = tuple(schedule.level(v.t - stride) if v.t >= stride else levels[-1] for v in levels[:-1])
        if aims != levels[1:]:
            return Visits(levels, f"{spacing} by {stride}", start, aims)
    if ends not in (None, "linspace"):  # which spans all that the schedule has, as an explicit spacing does
        spacing = f"{spacing} in {ends}"
    return Visits(levels, spacing, start)


def _explicit(schedule: Schedule, entry: Sampler, steps: int | None, levels: tuple[Level, ...], clean: bool) -> Visits:
    if steps is not None and not is_whole(steps, len(levels), len(levels)):
        raise ArgumentError(
            f"num_inference_steps is {shown(steps)}, but {len(levels)} levels were given; leave one out"
        )
    levels = _ended(schedule, entry, levels, clean)
    return Visits(levels, "custom", 1.0 if entry.unit_start or schedule.flow else levels[0].sigma)


def _ended(schedule: Schedule, entry: Sampler, levels: tuple[Level, ...], clean: bool) -> tuple[Level, ...]:
    """The levels with the last one, to which the last step leads; ``clean`` where their spacing says so."""
    end = CLEAN
    if entry.end == "first" or (entry.end == "schedule" and not schedule.set_alpha_to_one):
        end = schedule.level(0)
    # Where the levels end at timestep 0 already, DEIS and TCD would waste their last call.
    idle = entry.end == "first" and levels[-1].sigma <= end.sigma
    return (*levels, CLEAN if clean or schedule.flow or idle else end)
