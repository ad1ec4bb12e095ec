"""How edgediff finds its kernels, and does without; and the CUDA device where there is none."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest

import edgediff
from edgediff.errors import ArgumentError, EngineError
from edgediff.sampling import kernel_layout, kernels
from edgediff.sampling.kernel_layout import CONSTANTS, HEADER, ROW, STATE, packed
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.schedule import Schedule


@pytest.fixture
def fresh():
    """A search that has not been made, before and after."""
    kernels.find_package.cache_clear()
    yield
    kernels.find_package.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_the_package_numpy_does_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "edgediff_kernels", None)  # as if it were not installed
    monkeypatch.setattr(kernels.importlib, "import_module", missing)
    assert kernels.find_package().module is None
    assert kernels.describe().startswith("NumPy; the package edgediff-kernels is not installed")
    with pytest.raises(EngineError, match="edgediff-kernels is not installed"):
        kernels.require_package()
    x = np.ones((1, 4, 8, 8), np.float32)
    after, pushed = kernels.advance(plan(Schedule(), "dpmpp_2m", 4, 1.0).rows[0], x, None, x, [], None, True)
    assert np.isfinite(after).all()
    assert pushed is not None


def missing(name: str):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("facts", [{}, {"ABI": 1, "ROW_BYTES": 88, "HEADER_BYTES": 48}])
def test_another_abi_is_left_alone(monkeypatch, facts) -> None:
    other = types.SimpleNamespace(__version__="9.9", **facts)
    monkeypatch.setattr(kernels.importlib, "import_module", lambda name: other)
    assert kernels.find_package().module is None
    assert "9.9 is of another ABI" in kernels.describe()


def swapped(fields):
    return (("a", *fields[0][1:]), ("t", *fields[1][1:]), *fields[2:])


def moved(fields):
    *others, (name, kind, offset) = fields
    return (*others, (name, kind, offset + 4))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ROW_FIELDS": lambda fields: fields[:-1]}, r"a row otherwise \(draw\)"),
        ({"ROW_FIELDS": lambda fields: (*fields, ("kb", "f4", ROW.itemsize))}, r"a row otherwise \(kb\)"),
        ({"ROW_FIELDS": swapped}, r"a row otherwise \(a, t\)"),
        ({"ROW_FIELDS": lambda fields: (("t", "f8", 0), *fields[1:])}, r"a row otherwise \(t\)"),
        ({"ROW_FIELDS": moved}, r"a row otherwise \(draw\)"),
        ({"ROW_BYTES": lambda size: size + 4}, r"a row otherwise \(its size\)"),
        ({"HEADER_FIELDS": lambda fields: (*fields[:-1], ("noise", "i8", 48))}, r"a header otherwise \(noise\)"),
        ({"HEADER_BYTES": lambda size: size + 8}, r"a header otherwise \(its size\)"),
        (
            {"STATE_FIELDS": lambda fields: (*fields[:-1], ("timestep_type", "i4", 96))},
            r"a state otherwise \(timestep_type\)",
        ),
    ],
)
def test_another_layout_is_left_alone(monkeypatch, change, says: str) -> None:
    """The package as it is, but for one fact."""
    installed = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    other = types.SimpleNamespace(**vars(installed))
    monkeypatch.setattr(kernels.importlib, "import_module", lambda name: other)
    assert kernels.find_package().module is other
    for name, changed in change.items():
        setattr(other, name, changed(getattr(installed, name)))
    kernels.find_package.cache_clear()
    assert kernels.find_package().module is None
    assert re.search(f"edgediff-kernels {installed.__version__} lays out {says}; install it again", kernels.describe())


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", CONSTANTS)
def test_other_constants_are_left_alone(monkeypatch, name: str) -> None:
    installed = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    monkeypatch.setattr(kernels.importlib, "import_module", lambda _: installed)
    monkeypatch.setattr(installed, name, getattr(installed, name) + 1)
    assert re.search(f"has another {name}; install it again", kernels.describe())


@pytest.mark.usefixtures("fresh")
def test_a_package_that_cannot_load_gives_its_reason(monkeypatch) -> None:
    def broken(name: str):
        raise ImportError("libfoo.so.1: cannot open shared object file")

    monkeypatch.setattr(kernels.importlib, "import_module", broken)
    assert "cannot be loaded: libfoo.so.1" in kernels.describe()


def test_pictures_are_the_same_with_and_without(monkeypatch) -> None:
    """Every bit of a stochastic run of the built-in model, guided in part."""
    pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pipe = edgediff.load()
    results = []
    for module in (kernels.find_package().module, None):
        monkeypatch.setattr(kernels, "find_package", lambda module=module: kernels.KernelPackage(module))
        results.append(
            pipe(
                "a red apple",
                seed=3,
                sampler="dpmpp_3m_sde",
                num_inference_steps=6,
                guidance_interval=(0.2, 0.8),
                output_type="latent",
            ).latents
        )
    np.testing.assert_array_equal(*results)


def test_the_package_is_looked_for_only_when_needed() -> None:
    code = "import sys, edgediff; pipe = edgediff.load(); print([m for m in sys.modules if 'kernels' in m])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['edgediff.sampling.kernels']"


def test_rows_are_packed_in_float32() -> None:
    table = plan(Schedule(), "dpmpp_3m_sde", 6, 7.5, guidance_interval=(0.0, 0.5))
    rows = packed(table)
    assert rows.dtype == ROW
    assert packed(table) is rows  # a plan keeps them
    assert not rows.flags.writeable
    draws = 0
    for row, given in zip(rows, table.rows, strict=True):
        for name in {column.name for column in fields(given)} - {"w"}:
            assert row[name] == np.float32(getattr(given, name)), name
        assert row["rest"] == np.float32(1 - given.scale)
        assert tuple(row["w"][: len(given.w)]) == tuple(np.float32(given.w))
        assert not row["w"][len(given.w) :].any()
        assert row["draw"] == draws
        draws += given.d != 0
    assert draws > 0
    assert {True, False} == {row.guided for row in table.rows}
    np.testing.assert_array_equal(rows["ka"], np.array([level.alpha for level in table.levels[1:]], np.float32))
    np.testing.assert_array_equal(rows["ks"], np.array([level.sigma for level in table.levels[1:]], np.float32))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_a_copied_plan_keeps_its_own_rows(twin: Callable[[Plan], Plan]) -> None:
    table = plan(Schedule(), "euler", 3, 7.5)
    rows = packed(table)
    other = twin(table)
    assert other == table
    assert packed(other) is not rows
    assert not packed(other).flags.writeable
    np.testing.assert_array_equal(packed(other), rows)


def test_too_much_history_is_refused() -> None:
    table = plan(Schedule(), "ddim", 4)
    with pytest.raises(ArgumentError, match="the plan reads 9 past values; the kernels hold a history of 8"):
        packed(replace(table, depth=9))


def test_structures_have_the_kernels_layout() -> None:
    module = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    for dtype, name in ((ROW, "ROW"), (HEADER, "HEADER"), (STATE, "STATE")):
        theirs = getattr(module, f"{name}_FIELDS")
        assert dtype.itemsize == getattr(module, f"{name}_BYTES")
        names, formats, offsets = (list(column) for column in zip(*theirs, strict=True))
        assert np.dtype({"names": names, "formats": formats, "offsets": offsets}) == dtype
    assert all(getattr(kernel_layout, name) == getattr(module, name) for name in CONSTANTS)
    assert kernels.ABI == module.ABI


def test_cuda_core_has_what_the_device_calls() -> None:
    """Without a GPU the calls cannot be made; their names and arguments are those of the installed cuda-core."""
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    graph = pytest.importorskip("cuda.core.graph")
    for owner, names in (
        (core.Device, ("set_current", "create_stream", "allocate", "properties", "name")),
        (core.Stream, ("handle", "create_graph_builder", "sync", "record", "close")),
        (core.Event, ("sync",)),
        (core.Buffer, ("handle", "close")),
        (graph.GraphBuilder, ("begin_building", "end_building", "complete", "close")),
        (graph.Graph, ("launch",)),
        (driver, ("cuMemsetD8Async", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "CUresult")),
    ):
        for name in names:
            assert hasattr(owner, name), f"{owner} has no {name}"
    assert "stream" in str(inspect.signature(core.Device.allocate))
    assert "mode" in str(inspect.signature(graph.GraphBuilder.begin_building))
