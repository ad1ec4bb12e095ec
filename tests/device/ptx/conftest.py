"""The kernels that ship, as each compiler at hand makes them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from . import compilers
from .execution import Program


@pytest.fixture(scope="session", params=list(compilers.COMPILERS))
def programs(request: pytest.FixtureRequest) -> Mapping[str, Program]:
    """The kernels by entry."""
    try:
        return compilers.programs(request.param)
    except compilers.NoCompiler as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def any_programs() -> Mapping[str, Program]:
    """The kernels by entry, as the first compiler at hand makes them."""
    reasons = []
    for name in compilers.COMPILERS:
        try:
            return compilers.programs(name)
        except compilers.NoCompiler as reason:
            reasons.append(str(reason))
    pytest.skip("; ".join(reasons))
