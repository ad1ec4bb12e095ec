"""Plans, schedules and settings refuse any value by name."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from edgediff import Apg, ArgumentError, Schedule, plan
from edgediff.sampling.rng import TorchCpuGenerator, TorchCudaGenerator

from ..support.strangers import STRANGERS


def refused(make: Any, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make()
    assert len(str(caught.value)) < 1200, name
    assert str(caught.value).isprintable(), name


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers(kind: str) -> None:
    stranger = STRANGERS[kind]
    for name in [f.name for f in fields(Schedule)]:
        refused(lambda: Schedule(**{name: stranger()}), name)  # noqa: B023
    for name in [f.name for f in fields(Apg)]:
        refused(lambda: Apg(**{name: stranger()}), name)  # noqa: B023
    for name in inspect.signature(plan).parameters:
        given = {"schedule": Schedule(), "sampler": "euler_a", name: stranger()}
        refused(lambda: plan(**given), name)  # noqa: B023
    for generator in (TorchCpuGenerator, TorchCudaGenerator):
        refused(lambda: generator(stranger()), "seed")  # noqa: B023
    refused(lambda: TorchCudaGenerator(1, stranger()), "multiprocessors")
    refused(lambda: TorchCudaGenerator(1, 1, stranger()), "threads_per_multiprocessor")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"num_train_timesteps": "x"}, "num_train_timesteps is 'x'; it must be a whole number, 2 .. 1000000"),
        ({"num_train_timesteps": 1000.0}, "num_train_timesteps is 1000.0"),
        ({"beta_start": "x"}, "betas run from 'x' to 0.012"),
        ({"beta_schedule": 5}, "no beta_schedule 5; choose from linear"),
        ({"prediction_type": None}, "no prediction_type None; choose from epsilon"),
        ({"steps_offset": 10**400}, "steps_offset is 1000.*; it must be a whole number, 0 .. 1000000"),
        ({"set_alpha_to_one": 1}, "set_alpha_to_one is 1; it must be True or False"),
        ({"use_karras_sigmas": "yes"}, "use_karras_sigmas is 'yes'; it must be True or False"),
        ({"shift": "3"}, "shift is '3'; it must be a number, 0.01 .. 100"),
        ({"timestep_scaling": math.inf}, "timestep_scaling is inf"),
        ({"lambda_min_clipped": "-inf"}, "lambda_min_clipped is '-inf'; it must be a number, or -inf for none"),
        ({"lambda_min_clipped": math.nan}, "lambda_min_clipped is nan"),
    ],
)
def test_fields_of_a_schedule(field: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        Schedule(**field)


def test_a_run_has_an_end() -> None:
    """A million timesteps are a schedule; a million steps would take hours to plan."""
    long = Schedule(num_train_timesteps=10**6, beta_start=1e-7, beta_end=1e-6)
    with pytest.raises(ArgumentError, match=r"num_inference_steps is 1000000; it must be 1 \.\. 10000"):
        plan(long, "deis_3", 10**6)
    with pytest.raises(ArgumentError, match="timesteps are 10001 numbers; there may be at most 10000"):
        plan(long, "deis_3", timesteps=range(10_000, -1, -1))


def test_fields_that_numpy_made() -> None:
    given = Schedule(
        num_train_timesteps=np.int32(1000),
        beta_end=np.float64(0.012),
        set_alpha_to_one=np.bool_(True),  # type: ignore[arg-type]
    )
    assert plan(given, "ddim", 5).rows == plan(Schedule(), "ddim", 5).rows
    without = Schedule(lambda_min_clipped=-math.inf)  # as diffusers writes it
    assert plan(without, "dpmpp_2m", 5).rows == plan(Schedule(), "dpmpp_2m", 5).rows
