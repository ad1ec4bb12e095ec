"""Every sampler on a GPU, beside the host loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from edgediff.device.cuda import CudaDevice
from edgediff.sampling.samplers import SAMPLERS

from ...support.device_checks import ALIKE, LARGE, MIXED, SMALL, Run, check_sampler

pytestmark = pytest.mark.gpu


def record(runs: Sequence[Run], record_property: Callable[[str, object], None]) -> None:
    """Keep how near the runs came, for the report of a machine."""
    exact = [run for run in runs if run.noise == "host"]
    record_property("runs", len(runs))
    record_property("bit_equal_of_host_noise", f"{sum(run.bit_equal for run in exact)} of {len(exact)}")
    for noise in ("host", "device"):
        record_property(f"worst_error_{noise}_noise", max(run.error for run in runs if run.noise == noise))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_small_shapes(gpu: CudaDevice, sampler: str, record_property: Callable[[str, object], None]) -> None:
    record(check_sampler(gpu, sampler, SMALL, ALIKE), record_property)


@pytest.mark.parametrize("sampler", ["ddim", "euler_a", "dpmpp_2m", "dpmpp_sde", "unipc_3"])
def test_large_shapes(gpu: CudaDevice, sampler: str, record_property: Callable[[str, object], None]) -> None:
    record(check_sampler(gpu, sampler, LARGE, MIXED, ["epsilon"]), record_property)
