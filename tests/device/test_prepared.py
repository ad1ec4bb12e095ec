"""The prepared launches: number formats in every pattern, and bad arguments that must not become crashes."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.sampling.kernels import HEADER, ROW

from ..support.host_device import narrowed, widened

kernels = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

BATCH, SIZE, ROWS, DEPTH = 2, 12, 3, 2
VALUES = BATCH * SIZE


def memory(count: int = VALUES, dtype: str = "float32") -> dict[str, np.ndarray]:
    width = {"float32": np.float32, "float16": np.uint16, "bfloat16": np.uint16}[dtype]
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


def buffers(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    return {name: (v.ctypes.data, v.nbytes) for name, v in arrays.items()}


def arguments(**changed: Any) -> dict[str, Any]:
    return {
        "device": -1,
        "batch": BATCH,
        "size": SIZE,
        "stride": SIZE,
        "depth": DEPTH,
        "rows": ROWS,
        "copies": 2,
        "input": "float32",
        "output": "float32",
        "timestep": "float32",
    } | changed


@pytest.mark.parametrize("emulated", [0, 132])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_pattern_is_read_and_written(dtype: str, emulated: int) -> None:
    """x' = c for every pattern of c, infinities and NaN too; and back again into the model's input."""
    patterns = np.arange(65536, dtype=np.uint16)
    arrays = memory(65536, dtype)
    arrays["output"][:65536] = patterns
    arrays["rows"]["bc"] = 1
    arrays["header"]["steps"], arrays["header"]["copies"] = ROWS, 1
    update = kernels.Update(
        **arguments(batch=1, size=65536, stride=65536, input=dtype, output=dtype, emulated=emulated),
        buffers=buffers(arrays),
    )
    update.step()
    wide = widened(patterns if dtype == "bfloat16" else patterns.view(np.float16), dtype)
    np.testing.assert_array_equal(arrays["x"], wide)
    back = widened(arrays["input"][:65536].view(np.float16) if dtype == "float16" else arrays["input"][:65536], dtype)
    np.testing.assert_array_equal(back, wide)
    assert arrays["header"]["bad_what"] == kernels.BAD_OUTPUT
    assert arrays["header"]["step"] == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_16_bits(dtype: str) -> None:
    """To nearest even, subnormals and the way to infinity included."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 1 << 20, dtype=np.uint64).astype(np.uint32).view(np.float32)
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    near = halves[np.isfinite(halves)].astype(np.float32)
    middles = (near[:-1].astype(np.float64) + near[1:]) / 2
    values = np.concatenate([values, near, middles.astype(np.float32), np.float32([65519.99, 65520, 1e-8, 3e38])])
    values = np.ascontiguousarray(values[~np.isnan(values)])
    out = np.zeros(values.size, np.uint16)
    kernels.unscale(
        device=-1,
        x=(values.ctypes.data, values.nbytes),
        z=(out.ctypes.data, out.nbytes),
        type=dtype,
        count=values.size,
        scale=1.0,
        shift=0.0,
    )
    with np.errstate(over="ignore"):
        expected = narrowed(values + np.float32(0), dtype).view(np.uint16)
    np.testing.assert_array_equal(out, expected)


def test_a_good_call_passes() -> None:
    arrays = memory()
    update = kernels.Update(**arguments(), buffers=buffers(arrays))
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
        ({"depth": 9}, "depth is 9; the kernels hold a history of 0 .. 8"),
        ({"depth": -1}, "depth is -1"),
        ({"depth": 3}, "buffer history holds 192 bytes; this geometry needs 288"),
        ({"device": -2}, "device is -2"),
        ({"emulated": -1}, "emulated"),
        ({"input": "float64"}, "the model's input is of type float64; choose from float32, float16, bfloat16"),
        ({"output": "int64"}, "the model's output is of type int64"),
        ({"timestep": "bool"}, "the timestep is of type bool; choose from float32, float16, bfloat16, int64, int32"),
        ({"size": 13, "stride": 13}, "buffer x holds 96 bytes; this geometry needs 104"),
        ({"stride": 24}, "buffer input holds 192 bytes; this geometry needs 384"),
        ({"rows": 4}, f"buffer rows holds {3 * ROW.itemsize} bytes; this geometry needs {4 * ROW.itemsize}"),
        ({"timestep": "int64"}, "buffer timestep holds 16 bytes; this geometry needs 32"),
    ],
)
def test_bad_geometry(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.Update(**arguments(**changed), buffers=buffers(memory()))


def test_bad_buffers() -> None:
    good = buffers(memory())
    for bad, message in (
        ({k: v for k, v in good.items() if k != "x"}, "buffer x is missing"),
        ({k: v for k, v in good.items() if k != "history"}, "buffer history is missing"),
        (good | {"y": (64, 64)}, "no buffer y; choose from header, rows"),
        (good | {"x": (0, 1000)}, "buffer x is a null pointer"),
        (good | {"x": (good["x"][0] + 1, 1000)}, "buffer x lies at .* aligned to 4 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.Update(**arguments(), buffers=bad)
    with pytest.raises(TypeError):
        kernels.Update(**arguments(), buffers={"x": -5})
    with pytest.raises(TypeError):
        kernels.Update(**arguments(batch="two"), buffers=good)


def test_what_is_optional() -> None:
    arrays = memory()
    del arrays["x0"], arrays["history"]
    kernels.Update(**arguments(depth=0), buffers=buffers(arrays)).step()


def test_bad_ends() -> None:
    arrays = memory()
    x = buffers(arrays)["x"]
    good = {"device": -1, "x": x, "z": x, "type": "float32", "count": 24, "scale": 1.0, "shift": 0.0}
    for changed, message in (
        ({"type": "int64"}, "z is of type int64"),
        ({"count": 0}, "count is 0"),
        ({"count": 25}, "buffer x holds 96 bytes; this geometry needs 100"),
        ({"z": (0, 96)}, "buffer z is a null pointer"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.unscale(**(good | changed))


def has_gpu() -> bool:
    try:
        return bool(kernels.device_count())
    except kernels.CudaError:
        return False


@pytest.mark.skipif(has_gpu(), reason="a GPU is here; tests/device/gpu go further")
def test_without_a_gpu_every_call_is_a_typed_error() -> None:
    good = buffers(memory())
    x = good["x"]
    for call in (
        kernels.device_count,
        lambda: kernels.Update(**arguments(device=0), buffers=good),
        lambda: kernels.unscale(device=0, x=x, z=x, type="float32", count=24, scale=1.0, shift=0.0),
        lambda: kernels.to_uint8(device=0, decoded=x, pixels=x, header=x, type="float32", images=1, area=1),
    ):
        with pytest.raises(kernels.CudaError, match=r"no CUDA device can be used|built without CUDA"):
            call()
    assert issubclass(kernels.CudaError, RuntimeError)


ARCHITECTURES = Path(__file__).parents[2] / "cpp_ext" / "cross" / "architectures.py"


def test_machine_code_for_every_target() -> None:
    """Read from the library itself."""
    facts = kernels.facts()
    if facts["cuda"] is None:
        pytest.skip("built without CUDA: no nvcc was found when edgediff-kernels was built")
    library = Path(sys.modules["edgediff_kernels._kernels"].__file__).read_bytes()
    found = runpy.run_path(str(ARCHITECTURES))["architectures"](library)
    asked = [name.split("-") for name in facts["architectures"].split()]
    assert set(found) == {("sm_" if kind == "real" else "compute_") + number for number, kind in asked}
    if not facts["chosen"] and int(facts["cuda"].split(".")[0]) >= 13:
        assert set(found) == {f"sm_{number}" for number in (75, 80, 86, 87, 89, 90, 110, 120)} | {"compute_75"}
