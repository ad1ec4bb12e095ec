"""Samplers: each a small function from noise levels to linear steps in (x, x0); ``linear_step`` has their words.

Where the start is pure noise (alpha 0) or the end is clean (sigma 0), methods of higher order have no finite step there
and take DDIM's, as their origins do at the clean end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, zip_longest

from .linear_step import Levels, LinearStep, Steps, ancestral, by_noise, midway, noting_noise, straight, toward
from .polynomials import bh_factors, lagrange_integrals, log_integrals
from .schedule import Level, Schedule


def ddim(levels: Levels, _: Schedule, eta: float = 0.0, aims: Levels = ()) -> Steps:
    """DDIM (Song et al. 2020, https://arxiv.org/abs/2010.02502, equations 12 and 16).

    In these coordinates Euler's method on the probability-flow ODE is DDIM with eta 0; eta 1 is Euler ancestral and
    DDPM (Ho et al. 2020). On a flow-matching model's levels it is flow-match Euler. ``aims``: see ``Sampler.strides``.
    """
    for now, to in zip(levels, aims or levels[1:], strict=False):
        kept, d = ancestral(now, to, eta)
        yield toward(now, to, kept / now.sigma, d)


def heun(levels: Levels, schedule: Schedule) -> Steps:
    """Heun's method (Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1): two calls an interval."""
    for now, to in pairwise(straight(levels, schedule)):
        euler = toward(now, to)
        if now.alpha == 0 or to.sigma == 0:
            yield euler
            continue
        half = to.alpha * (to.ratio - now.ratio) / 2  # of the mean of both slopes, which are eps
        base = to.alpha / now.alpha + half / now.sigma, -half * now.alpha / now.sigma
        yield replace(euler, hx=base[0], h0=base[1])
        yield LinearStep(to, half / to.sigma, -half * to.alpha / to.sigma, (1.0,), stage=1)


def dpm2(levels: Levels, schedule: Schedule, eta: float = 0.0) -> Steps:
    """DPM-Solver-2 in k-diffusion's form (Karras et al. 2022, algorithm 2): the slope halfway carries the whole way."""
    for now, to in pairwise(levels if eta else straight(levels, schedule)):
        kept, d = ancestral(now, to, eta)
        if now.alpha == 0 or kept == 0:
            yield toward(now, to, kept / now.sigma, d)
            continue
        mid = midway(now, to, kept, schedule)
        gain = kept - to.alpha * now.ratio  # alpha' (rho_down - rho)
        yield replace(toward(now, mid), hx=to.alpha / now.alpha, h0=0.0)
        yield LinearStep(mid, gain / mid.sigma, -gain * mid.alpha / mid.sigma, (1.0,), d, stage=1)


def dpmpp_2s(levels: Levels, schedule: Schedule, eta: float = 1.0) -> Steps:
    """DPM-Solver++(2S), ancestral (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 1; k-diffusion)."""
    for now, to in pairwise(levels):
        kept, d = ancestral(now, to, eta)
        if now.alpha == 0 or kept == 0:
            yield toward(now, to, kept / now.sigma, d)
            continue
        mid = midway(now, to, kept, schedule)
        yield replace(toward(now, mid), hx=kept / now.sigma, h0=0.0)
        yield LinearStep(mid, 0.0, to.alpha - kept / now.ratio, (1.0,), d, stage=1)


def dpmpp_sde(levels: Levels, schedule: Schedule, eta: float = 1.0) -> Steps:
    """DPM-Solver++ SDE (k-diffusion's sample_dpmpp_sde): two stages along one Brownian path.

    The second stage starts from the interval's first state again. Its noise is the path's over the whole interval, so
    part of it is that of the first stage: what the middle state holds beyond its mean.
    """
    for now, to in pairwise(levels):
        kept, d = ancestral(now, to, eta)
        if now.alpha == 0 or to.sigma == 0:
            yield toward(now, to, kept / now.sigma, d)
            continue
        mid = midway(now, to, to.sigma, schedule)
        kept_mid, d_mid = ancestral(now, mid, eta)
        first = toward(now, mid, kept_mid / now.sigma, d_mid)
        shared = math.sqrt((now.ratio - mid.ratio) / (now.ratio - to.ratio))
        again = d * shared / d_mid if d_mid else 0.0
        yield replace(first, hx=kept / now.sigma - again * first.cx, h0=-again * first.c0)
        gain = to.alpha - kept / now.ratio
        yield LinearStep(mid, again, gain, (1.0,), d * math.sqrt(1 - shared**2), stage=1)


def lms(levels: Levels, schedule: Schedule, order: int = 4) -> Steps:
    """Linear multistep (k-diffusion's sample_lms): eps as a polynomial in rho through the last levels, integrated."""
    past: list[float] = []
    for now, to in pairwise(straight(levels, schedule)):
        if now.alpha == 0:
            yield toward(now, to)
            continue
        past = [now.ratio, *past][:order]
        yield by_noise(now, to, lagrange_integrals(past, now.ratio, to.ratio), range(order))


ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(levels: Levels, schedule: Schedule, aims: Levels = ()) -> Steps:
    """PLMS, also PNDM without its Runge-Kutta start (Liu et al. 2022, https://arxiv.org/abs/2202.09778, equation 12).

    The first interval takes two calls, as in Stable Diffusion's own sampler: after a DDIM step the noise estimates of
    both its ends are averaged and the step is taken again. ``aims``: see ``Sampler.strides``.
    """
    positions: list[int] = []  # of useful eps in the history
    levels = straight(levels, schedule)
    for k, (now, to) in enumerate(zip(levels, aims or levels[1:], strict=False)):
        if now.alpha == 0:
            yield toward(now, to)
            continue
        ratio = to.ratio - now.ratio
        yield by_noise(now, to, [ratio * c for c in ADAMS_BASHFORTH[len(positions)]], positions)
        if not positions and to.sigma and k + 2 < len(levels):
            # Take the step back, then from as far above the next level: now itself, unless steps have other aims.
            after = levels[k + 1]
            start = schedule.level(after.t + now.t - to.t) if aims else now
            lead, half = after.alpha / start.alpha, after.alpha * (after.ratio - start.ratio) / 2
            cx, c0 = lead * now.alpha / to.alpha + half / after.sigma, -half * after.alpha / after.sigma
            yield noting_noise(LinearStep(after, cx, c0, (half - lead * now.alpha * ratio,), stage=1))
            positions = [1]  # the estimate of the second call is not used again
        else:
            positions = [0, *(p + 1 for p in positions)][:3]


def deis(levels: Levels, schedule: Schedule, order: int = 2) -> Steps:
    """DEIS with polynomials in log rho (Zhang & Chen 2022, https://arxiv.org/abs/2204.13902, section 3.2)."""
    past: list[float] = []
    count = len(levels) - 1
    for k, (now, to) in enumerate(pairwise(levels)):
        if now.alpha == 0 or to.sigma == 0:
            yield noting_noise(toward(now, to))
            continue
        past = [math.log(now.ratio), *past][:order]
        # Short runs end in lower orders for stability, as in diffusers.
        usable = past[: count - k] if count < 15 and schedule.lower_order_final else past
        yield by_noise(now, to, log_integrals(usable, now.ratio, to.ratio), range(order))


def dpmpp_2m(levels: Levels, _: Schedule, eta: float = 0.0) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2), midpoint form; with eta its SDE
    (the same, section 5).
    """
    previous: Level | None = None
    for now, to in pairwise(levels):
        keep, gain, d = exponential(now, to, eta)
        if previous is None or to.sigma == 0:
            yield LinearStep(now, keep, gain, d=d)
        else:
            r = (now.lam - previous.lam) / (to.lam - now.lam)
            yield LinearStep(now, keep, gain * (1 + 0.5 / r), (-gain * 0.5 / r,), d)
        previous = now


def exponential(now: Level, to: Level, eta: float) -> tuple[float, float, float]:
    """``(keep, gain, d)`` of the exponential integrator's first order, with ``h = lambda' - lambda``:
    ``exp(-eta h) sigma'/sigma``, ``alpha' (1 - exp(-(1 + eta) h))`` and ``sigma' sqrt(1 - exp(-2 eta h))``.
    """
    faded = (now.alpha * to.sigma / (now.sigma * to.alpha)) ** eta  # exp(-eta h)
    keep = faded * to.sigma / now.sigma
    return keep, to.alpha - keep * now.alpha, to.sigma * math.sqrt(max(0.0, 1 - faded * faded))


def dpmpp_3m(levels: Levels, _: Schedule, eta: float = 1.0) -> Steps:
    """DPM-Solver++(3M) SDE (k-diffusion's sample_dpmpp_3m_sde)."""
    past: list[float] = []  # earlier h, newest first
    for now, to in pairwise(levels):
        keep, gain, d = exponential(now, to, eta)
        h = to.lam - now.lam
        c = [gain]
        if to.sigma and past and math.isfinite(h):
            x = h * (1 + eta)
            phi_2 = to.alpha * (math.expm1(-x) / x + 1)
            r0 = past[0] / h
            if len(past) == 1 or math.isinf(r0):
                c = [gain + phi_2 / r0, -phi_2 / r0]
            else:
                r1 = past[1] / h
                phi_3 = phi_2 / x - to.alpha / 2
                # d1 and d2 of the origin, gathered by estimate.
                first, second = 1 / r0, (0.0 if math.isinf(r1) else 1 / r1)
                slope, bend = phi_2, (phi_2 * r0 - phi_3) / (r0 + r1)
                c = [gain + slope * first + bend * first, -(slope + bend) * first - bend * second, bend * second]
        yield LinearStep(now, keep, c[0], tuple(c[1:]), d)
        past = [h, *past][:2]


def unipc(levels: Levels, _: Schedule, order: int = 2) -> Steps:
    """UniPC with B2(h) (Zhao et al. 2023, https://arxiv.org/abs/2302.04867, algorithms 5 to 8), x0 form.

    Predictor and corrector of one interval share the term of the state before it, so the corrected state is the
    predicted one plus a combination of x0 estimates: one row corrects and predicts.
    """
    count = len(levels) - 1
    correction: list[float] = []  # of the interval before: factors of x0 now, x0 before, ...
    for k, (now, to) in enumerate(pairwise(levels)):
        keep, h = to.sigma / now.sigma, to.lam - now.lam
        past = levels[max(0, k - order + 1) : k][::-1][: count - k - 1]  # short ends lower the order
        nodes = [(level.lam - now.lam) / h for level in past]
        predictor = bh_factors(h, nodes, to.alpha, None)
        total = [p + keep * c for p, c in zip_longest(predictor, correction, fillvalue=0.0)]
        yield LinearStep(now, keep, total[0], tuple(total[1:]))
        if to.sigma:
            at_end, *others = bh_factors(h, nodes, to.alpha, 1.0)
            correction = [at_end, *(c - p for c, p in zip(others, predictor, strict=True))]


def lcm(levels: Levels, schedule: Schedule) -> Steps:
    """Latent consistency models (Luo et al. 2023, https://arxiv.org/abs/2310.04378, algorithm 3): jump to x0, noise it
    again. The boundary condition mixes a little of x into x0 (at the least timestep 7e-6).
    """
    for now, to in pairwise(levels):
        scaled = now.t * schedule.timestep_scaling / 0.5  # sigma_data
        skip, out = 1 / (scaled**2 + 1), scaled / math.sqrt(scaled**2 + 1)
        yield LinearStep(now, to.alpha * skip, to.alpha * out, d=to.sigma)


def tcd(levels: Levels, schedule: Schedule, eta: float = 0.0) -> Steps:
    """Trajectory consistency distillation (Zheng et al. 2024, https://arxiv.org/abs/2402.19159, algorithm 4): jump to
    ``(1 - eta) t'`` and noise from there to ``t'``; eta is the paper's gamma, which it sets to 0.3. diffusers'
    pipelines set 0 unless they are told.
    """
    for now, to in pairwise(levels):
        less = schedule.level(math.floor((1 - eta) * to.t)) if eta and to.sigma else to
        less = less if less.ratio < to.ratio else to  # t is rounded where levels were not made from timesteps
        grow = to.alpha / less.alpha
        jump = toward(now, less)
        d = math.sqrt(max(0.0, to.sigma**2 - (grow * less.sigma) ** 2))
        yield replace(jump, cx=grow * jump.cx, c0=grow * jump.c0, d=d)


@dataclass(frozen=True)
class Sampler:
    """A step function and the conventions its origin attaches to it, so that the same seed gives the same picture.

    Attributes:
        label: the name that pictures carry.
        drop_last, rounded, clipped: how levels are spaced (see ``spacings.spaced``).
        rounds_karras: whole timesteps in the model's own Karras spacing alone.
        strides: where the model's own spacing decides, each step aims at the timestep ``T // steps`` below, whichever
            is visited next, as its origin does (which shows where linspace or trailing have another distance).
        end: the level of the last step: clean; schedule (``set_alpha_to_one`` decides); or first (timestep 0).
        unit_start: start from noise of deviation 1; otherwise of the first level's sigma, except in leading spacing.
        spacing: its own, where it is not the schedule's.
        eta: whether it takes one.
        memoryless: no step reads the history.
    """

    steps: Callable[..., Steps]
    label: str
    drop_last: bool = False
    rounded: bool = True
    rounds_karras: bool = False
    clipped: bool = False
    strides: bool = False
    end: str = "clean"
    unit_start: bool = True
    spacing: str | None = None
    eta: bool = False
    memoryless: bool = False


_K = partial(Sampler, rounded=False, unit_start=False)  # k-diffusion's conventions
_DPM = partial(Sampler, drop_last=True)  # those of diffusers' multistep solvers

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim, "DDIM", strides=True, end="schedule", eta=True, memoryless=True),
    "ddpm": Sampler(partial(ddim, eta=1.0), "DDPM", memoryless=True),
    "euler": _K(ddim, "Euler", memoryless=True),
    "euler_a": _K(partial(ddim, eta=1.0), "Euler a", eta=True, memoryless=True),
    "heun": _K(heun, "Heun"),
    "dpm2": _K(dpm2, "DPM2", rounds_karras=True),
    "dpm2_a": _K(partial(dpm2, eta=1.0), "DPM2 a", rounds_karras=True, eta=True),
    "lms": _K(lms, "LMS"),
    "plms": Sampler(plms, "PLMS", strides=True, end="schedule"),
    "deis": _DPM(deis, "DEIS", end="first"),
    "deis_3": _DPM(partial(deis, order=3), "DEIS 3", end="first"),
    "dpmpp_2m": _DPM(dpmpp_2m, "DPM++ 2M", clipped=True),
    "dpmpp_2m_sde": _DPM(partial(dpmpp_2m, eta=1.0), "DPM++ 2M SDE", clipped=True, eta=True),
    "dpmpp_3m_sde": _DPM(dpmpp_3m, "DPM++ 3M SDE", eta=True),
    "dpmpp_2s_a": _K(dpmpp_2s, "DPM++ 2S a", eta=True),
    "dpmpp_sde": _K(dpmpp_sde, "DPM++ SDE", eta=True),
    "unipc": _DPM(unipc, "UniPC"),
    "unipc_3": _DPM(partial(unipc, order=3), "UniPC 3"),
    "lcm": Sampler(lcm, "LCM", spacing="lcm", memoryless=True),
    "tcd": Sampler(tcd, "TCD", end="first", spacing="lcm", eta=True, memoryless=True),
}
