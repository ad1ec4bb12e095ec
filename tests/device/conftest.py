"""The stub driver for the tests of this folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from .stub.library import compile_stub, why_not
from .stub.on_stub import Children


@pytest.fixture(scope="session")
def stub_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub, compiled, for the real cuda-core."""
    if why := why_not():
        pytest.skip(why)
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        pytest.skip("cuda-core is not installed")
    return compile_stub(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="session")
def stub_children(stub_library: Path) -> Iterator[Children]:
    children = Children(stub_library)
    yield children
    children.close()
