"""The devices of these checks: an NVIDIA GPU, and for a few of them the kernels' host twin as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgediff.device.cuda import CudaDevice, why_no_device
from edgediff.device.host import HostDevice


def open_gpu() -> CudaDevice:
    """Open the first GPU; where none can be used, the test is skipped with the reason."""
    if why := why_no_device():
        pytest.skip(why)
    return CudaDevice()


@pytest.fixture(scope="module")
def gpu() -> Iterator[CudaDevice]:
    device = open_gpu()
    yield device
    device.close()


@pytest.fixture(scope="module", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "host":
        pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
        device: Any = HostDevice()
    else:
        device = open_gpu()
    yield device
    device.close()
