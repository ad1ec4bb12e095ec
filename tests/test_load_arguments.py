"""load() refuses any value by name, before anything is read."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import edgediff
from edgediff import ArgumentError, BundleError

from .support.strangers import STRANGERS

CALLED = ("engine", "device", "threads", "providers", "engine_cache", "build_options", "release_parts", "cuda_graphs")
# What is no mistake yet: a folder that may be there later, and names of providers that other builds may have.
FITTING = {
    *(("engine_cache", kind) for kind in ("surrogate", "long text")),
    *(("providers", kind) for kind in ("long list", "texts for numbers")),
}


def test_all_arguments_are_tried() -> None:
    assert {*CALLED, "path"} <= {*inspect.signature(edgediff.load).parameters}


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers(kind: str, tiny_bundle: Path) -> None:
    for name in CALLED:
        if (name, kind) in FITTING:
            continue
        with pytest.raises(ArgumentError) as caught:
            edgediff.load(tiny_bundle, **{name: STRANGERS[kind]()})
        assert len(str(caught.value)) < 1200, name
        assert str(caught.value).isprintable(), name
    with pytest.raises((ArgumentError, BundleError)):
        edgediff.load(STRANGERS[kind]())


def test_arrays_where_a_name_belongs(tiny_bundle: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no engine array.*choose from onnx"):
        edgediff.load(tiny_bundle, engine=np.array(["onnx", "auto"]))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="build_options is 5; it must be a BuildOptions"):
        edgediff.load(tiny_bundle, build_options=5)  # type: ignore[arg-type]
