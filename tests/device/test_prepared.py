"""The prepared launches: number formats in every pattern, and bad arguments that must not become crashes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.device.array import Block
from edgediff.device.cuda.source import kernel_source
from edgediff.device.geometry import BUFFERS, Geometry
from edgediff.device.host_kernels import HostKernels
from edgediff.errors import ArgumentError
from edgediff.sampling.kernel_layout import BAD_OUTPUT, HEADER, ROW

from ..support.host_device import narrowed, widened

package = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
kernels = HostKernels()

BATCH, SIZE, ROWS, DEPTH = 2, 12, 3, 2
VALUES = BATCH * SIZE


def memory(count: int = VALUES, dtype: str = "float32") -> dict[str, np.ndarray]:
    width = {"float32": np.float32, "float16": np.uint16}[dtype]
    return {
        "header": np.zeros(1, HEADER),
        "rows": np.zeros(ROWS, ROW),
        "seeds": np.zeros(BATCH, np.uint64),
        "x": np.zeros(count, np.float32),
        "history": np.zeros(DEPTH * count, np.float32),
        "x0": np.zeros(count, np.float32),
        "output": np.zeros(2 * count, width),
        "input": np.zeros(2 * count, width),
        "timestep": np.zeros(2 * BATCH, np.float32),
    }


def buffers(arrays: dict[str, np.ndarray]) -> dict[str, Block]:
    return {name: Block(v.ctypes.data, v.nbytes) for name, v in arrays.items()}


def geometry(**changed: Any) -> Geometry:
    return Geometry(
        **({"batch": BATCH, "size": SIZE, "stride": SIZE, "depth": DEPTH, "rows": ROWS, "copies": 2} | changed)
    )


@pytest.mark.parametrize("emulated", [0, 132])
def test_every_16_bit_pattern_is_read_and_written(emulated: int) -> None:
    """x' = c for every pattern of c, infinities and NaN too; and back again into the model's input."""
    patterns = np.arange(65536, dtype=np.uint16)
    arrays = memory(65536, "float16")
    arrays["output"][:65536] = patterns
    arrays["rows"]["bc"] = 1
    arrays["header"]["steps"], arrays["header"]["copies"] = ROWS, 1
    shape = geometry(batch=1, size=65536, stride=65536, input="float16", output="float16")
    kernels.update(shape, buffers(arrays), emulated).step()
    wide = widened(patterns.view(np.float16))
    np.testing.assert_array_equal(arrays["x"], wide)
    np.testing.assert_array_equal(widened(arrays["input"][:65536].view(np.float16)), wide)
    assert arrays["header"]["bad_what"] == BAD_OUTPUT
    assert arrays["header"]["step"] == 1


def test_rounding_to_16_bits() -> None:
    """To nearest even, subnormals and the way to infinity included."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 1 << 20, dtype=np.uint64).astype(np.uint32).view(np.float32)
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    near = halves[np.isfinite(halves)].astype(np.float32)
    middles = (near[:-1].astype(np.float64) + near[1:]) / 2
    values = np.concatenate([values, near, middles.astype(np.float32), np.float32([65519.99, 65520, 1e-8, 3e38])])
    values = np.ascontiguousarray(values[~np.isnan(values)])
    out = np.zeros(values.size, np.uint16)
    given, made = (Block(v.ctypes.data, v.nbytes) for v in (values, out))
    kernels.unscale(given, made, "float16", values.size, 1.0, 0.0)
    with np.errstate(over="ignore"):
        expected = narrowed(values + np.float32(0), "float16").view(np.uint16)
    np.testing.assert_array_equal(out, expected)


def test_a_good_call_passes() -> None:
    arrays = memory()
    update = kernels.update(geometry(), buffers(arrays))
    update.begin()
    update.step()
    assert arrays["header"]["step"] == 0  # no rows


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": 0}, "batch is 0; it must be 1 .. 65535"),
        ({"size": 0}, "size is 0"),
        ({"size": 2**40}, "size is"),
        ({"stride": 11}, "stride is 11, below the size, 12"),
        ({"rows": 0}, "rows is 0"),
        ({"copies": 3}, "copies is 3; it must be 1 .. 2"),
        ({"depth": 9}, "depth is 9; it must be 0 .. 8"),
        ({"depth": -1}, "depth is -1"),
        ({"depth": 3}, "buffer history holds 192 bytes; this geometry needs 288"),
        ({"batch": "two"}, "batch is 'two'; it must be 1"),
        ({"batch": 4096, "stride": 2**31}, r"batch \* stride is \d+ values"),
        ({"input": "float64"}, "input is of type 'float64'; choose from float32, float16"),
        ({"output": "int64"}, "output is of type 'int64'"),
        ({"timestep": "bool"}, "timestep is of type 'bool'; choose from float32, float16, int64"),
        ({"size": 13, "stride": 13}, "buffer x holds 96 bytes; this geometry needs 104"),
        ({"stride": 24}, "buffer input holds 192 bytes; this geometry needs 384"),
        ({"rows": 4}, f"buffer rows holds {3 * ROW.itemsize} bytes; this geometry needs {4 * ROW.itemsize}"),
        ({"timestep": "int64"}, "buffer timestep holds 16 bytes; this geometry needs 32"),
    ],
)
def test_bad_geometry(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        kernels.update(geometry(**changed), buffers(memory()))


def test_bad_buffers() -> None:
    good = buffers(memory())
    for bad, message in (
        ({k: v for k, v in good.items() if k != "x"}, "buffer x is missing"),
        ({k: v for k, v in good.items() if k != "history"}, "buffer history is missing"),
        (good | {"y": Block(64, 64)}, "no buffer 'y'; choose from header, rows"),
        (good | {"x": Block(0, 1000)}, "buffer x is .*; it must be an address and its bytes"),
        (good | {"x": Block(good["x"].address + 1, 1000)}, "buffer x lies at .* aligned to 4 bytes"),
        (good | {"x": Block(-5, 1000)}, "buffer x is .*; it must be an address and its bytes"),
    ):
        with pytest.raises(ArgumentError, match=message):
            kernels.update(geometry(), bad)


def test_a_state_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the state is 3 bytes; it must be \d+"):
        package.Update(state=b"123")


def test_what_is_optional() -> None:
    arrays = memory()
    del arrays["x0"], arrays["history"]
    kernels.update(geometry(depth=0), buffers(arrays)).step()


def test_bad_ends() -> None:
    x = buffers(memory())["x"]
    for z, dtype, count, message in (
        (x, "int64", 24, "z is of type 'int64'"),
        (x, "float32", 0, "count is 0"),
        (x, "float32", 25, "buffer x holds 96 bytes; this geometry needs 100"),
        (Block(0, 96), "float32", 24, "buffer z is "),
    ):
        with pytest.raises(ArgumentError, match=message):
            kernels.unscale(x, z, dtype, count, 1.0, 0.0)
    for images, area, dtype, message in (
        (1, 9, "float32", "buffer decoded holds 96 bytes; this geometry needs 108"),
        (0, 8, "float32", "images is 0"),
        (1, 0, "float32", "area is 0"),
        (1, 8, "int64", "decoded is of type"),
    ):
        with pytest.raises(ArgumentError, match=message):
            kernels.to_uint8(x, x, x, dtype, images, area)


def test_wide_launches_need_aligned_buffers_and_enough_values() -> None:
    arrays = {name: Block(1 << 20, 1 << 40) for name in BUFFERS}
    large = geometry(batch=2, size=1 << 20, stride=1 << 20)
    assert large.grid(large.state(arrays), 132) == (1024, 1, 4)
    for name in ("x", "history", "x0", "output", "input"):
        moved = arrays | {name: Block((1 << 20) + 8, 1 << 40)}
        assert large.grid(large.state(moved), 132).pack == 1, name
    for shape in (geometry(size=1 << 10, stride=1 << 10), geometry(size=(1 << 20) + 2, stride=(1 << 20) + 4)):
        assert shape.grid(shape.state(arrays), 132).pack == 1
    small = geometry(batch=3, size=700, stride=700)
    assert small.grid(small.state(arrays), 132) == (3, 3, 1)


FOLDER = Path(package.__file__).parent
ARCHITECTURES = Path(__file__).parents[2] / "cpp_ext" / "cross" / "architectures.py"


def test_machine_code_for_every_target() -> None:
    """Read from the file itself; it is of the sources that edgediff has."""
    if not (FOLDER / "kernels.fatbin").exists():
        pytest.skip("no nvcc was found when edgediff-kernels was built")
    facts = json.loads((FOLDER / "kernels.json").read_text())
    found = runpy.run_path(str(ARCHITECTURES))["architectures"]((FOLDER / "kernels.fatbin").read_bytes())
    asked = facts["architectures"].split()
    assert set(found) == {*(f"sm_{one}" for one in asked), f"compute_{asked[0]}"}
    assert facts["sources"] == kernel_source().stamp
