"""The benchmark of a GPU, dry: every section runs, and its checks can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_hollow, gpu_sections, gpu_wheel
from benchmarks.gpu import prepare
from benchmarks.gpu_ours import Run
from benchmarks.sections import Findings, all_hold
from edgediff.bundle import read, sha256

pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "prepared"
    prepare(folder, None, None, [], true_size=False)
    return folder


@pytest.fixture(scope="module")
def filled(made: Path) -> Path:
    folder = Path(shutil.copytree(made / "sd15", made.parent / "filled"))
    gpu_hollow.fill(folder)
    return folder


def test_dry_run(made: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--from", str(made), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "gpu-dry.json").read_text(encoding="utf-8"))
    assert said["dry"]
    assert said.keys() >= {"machine", "versions", "command", "commit", "results"}
    found = said["results"]
    assert list(found) == [*gpu_sections.SECTIONS, "beside diffusers"]
    for name, part in found.items():
        assert "error" not in part["figures"], part["figures"]
        assert part["checks"] or name not in ("parity", "emoji")
    assert found["ours"]["figures"].keys() >= {"pictures_per_s", "step_ms", "unet_ms", "host_ms_a_call", "peak_mb"}
    assert found["options"]["figures"].keys() == {*gpu_sections.OPTIONS, "attention written out"}
    assert {g["name"] for g in found["beside diffusers"]["goals"]} == {
        "pictures a second, ours over compiled",
        "pictures a second, ours over eager",
    }
    assert not list((Path(__file__).parents[1] / "benchmarks" / "results").glob("gpu-dry*"))


def test_parity_sees_a_disturbed_weight(filled: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(filled, tmp_path / "sd15"))
    right = Findings()
    gpu_sections.parity(Run(folder, None, True, 3, 1), right)
    assert all_hold({"": {"checks": right.checks}})
    weights = next(f for f in read(folder).parts["unet"].files if f.engine == "onnx-data")
    data = np.fromfile(folder / weights.path, np.float16)
    data[: len(data) // 4] *= np.float16(1.2)
    data.tofile(folder / weights.path)
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    for file in manifest["parts"]["unet"]["files"]:
        if file["path"] == weights.path:
            file["sha256"] = sha256(folder / weights.path)
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    wrong = Findings()
    gpu_sections.parity(Run(folder, None, True, 3, 1), wrong)
    assert not all_hold({"": {"checks": wrong.checks}})


def test_hollow_bundles_are_small_and_draw_the_same_anywhere(made: Path, tmp_path: Path) -> None:
    weights = gpu_hollow.Weights(made / "sd15")
    names = list(weights.recipe["parameters"])
    assert names
    for name in names[:3]:
        np.testing.assert_array_equal(weights.draw(name), weights.draw(name))
        spread = weights.recipe["parameters"][name]["std"]
        assert float(weights.draw(name).std(dtype=np.float64)) == pytest.approx(spread, rel=0.05)
    assert not np.array_equal(weights.draw(names[0]).ravel()[:100], weights.draw(names[1]).ravel()[:100])


def test_wheels_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    noise = np.random.default_rng(0).bytes(200_000)
    with zipfile.ZipFile(wheel, "w") as f:
        f.writestr("thing/__init__.py", b"x = 1\n")
        f.writestr("thing/noise.bin", noise)
        f.writestr("thing/libonnxruntime_providers_tensorrt.so", noise)
    monkeypatch.setattr(gpu_wheel, "PIECE", 60_000)
    made = gpu_wheel.pieces(wheel, tmp_path / "pieces")
    assert len(made) > 2
    (joined,) = gpu_wheel.join(tmp_path / "pieces", tmp_path / "pieces")
    with zipfile.ZipFile(joined) as f:
        assert f.namelist() == ["thing/__init__.py", "thing/noise.bin"]
        assert f.read("thing/noise.bin") == noise
    made[1].unlink()
    with pytest.raises(SystemExit, match="one is missing"):
        gpu_wheel.join(tmp_path / "pieces", tmp_path)


def test_without_a_gpu_it_says_so(made: Path) -> None:
    from benchmarks import gpu

    if gpu.gpu():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit, match="finds no GPU"):
        gpu.on_gpu(made, ["ours"], None, {})
