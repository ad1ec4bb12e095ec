"""A little of everything: on the host twin, so that these checks stay true, on a GPU, and under compute-sanitizer."""

from __future__ import annotations

from typing import Any

import pytest

from ...support.device_checks import ALIKE, LARGE, MIXED, SMALL, check_graph, check_pictures, check_sampler


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_sde"])
def test_small_shapes(device: Any, sampler: str) -> None:
    check_sampler(device, sampler, SMALL[1:], ALIKE[1:])


@pytest.mark.parametrize("shape", LARGE)
def test_large_shapes(device: Any, shape: tuple[int, int, int, int]) -> None:
    check_sampler(device, "dpmpp_2m_sde", [shape], MIXED[:1], ["epsilon"])


def test_a_replayed_graph(device: Any) -> None:
    check_graph(device)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_pictures(device: Any, dtype: str) -> None:
    check_pictures(device, dtype)
