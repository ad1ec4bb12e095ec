"""``python -m benchmarks.gpu --dry-run``: every section but the GPU's own, at toy width over the kernels' host twin."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.bundle.manifest import WEIGHTS, sha256
from edgediff.bundle.reading import read_bundle
from edgediff.device.cuda import why_no_device

pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

ROOT = Path(__file__).parents[1]
ONLY = ("ours", "reference", "parity", "compiled", "none", "fixed", "best", "emoji", "tensorrt")


def call(*arguments: str, code: int = 0) -> str:
    """Run the script, which must end with ``code``; give what it prints as its errors."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stderr


def read_report(folder: Path) -> dict[str, Any]:
    """Read what a run wrote."""
    return dict(json.loads((folder / "gpu.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu") / "prepared"
    call("--prepare", str(folder), "--dry-run")
    return folder


@pytest.fixture(scope="module")
def report(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a dry run wrote."""
    out, kept = tmp_path_factory.mktemp("out"), ROOT / "benchmarks" / "results" / "gpu.json"
    before = kept.read_bytes() if kept.exists() else None
    call("--dry-run", "--run", str(prepared), "--out", str(out), "--only", *ONLY)
    assert (kept.read_bytes() if kept.exists() else None) == before
    return read_report(out)


def test_it_says_what_it_ran_on(report: dict[str, Any]) -> None:
    assert report["command"].startswith("python -m benchmarks.gpu --dry-run")
    assert {"cpu", "cores"} <= set(report["machine"])
    found = report["results"]
    assert found["dry_run"] is True
    assert found["gpu"] is None
    assert found["ours"]["device"]["name"] == "host memory"
    assert found["ours"]["device"]["onnxruntime"] == report["versions"]["onnxruntime"]
    assert found["prepared"]["reduced"] is True


def test_every_section_found_something(report: dict[str, Any]) -> None:
    found = report["results"]
    for name in ("ours", "reference", "parity", "compiled", "option none", "option fixed", "best", "emoji"):
        assert found[name]["figures"], name
        assert "skipped" not in found[name]["figures"], name
    assert found["tensorrt"]["figures"] == {"skipped": "a dry run has no GPU"}
    for name in ("ours", "compiled"):
        assert found[name]["figures"]["images_per_s"] > 0
        assert found[name]["figures"]["peak_mb"] > 0
    assert found["ours"]["figures"]["unet_calls"] == 3
    assert all(found["ours"]["figures"][name] > 0 for name in ("latents_s", "whole_s", "unet", "vae_decoder"))
    assert found["best"]["figures"]["variant"] in ("none", "fixed")
    goals = {goal["name"] for goal in found["comparison"]["goals"]}
    assert "images/s over diffusers compiled, as it comes" in goals


def test_parity_is_measured(report: dict[str, Any]) -> None:
    """fp16 is near fp32, yet not equal to it; another seed's picture is far from the floor."""
    found = report["results"]
    figures = found["parity"]["figures"]
    assert figures["floor"] == 35 <= figures["psnr"] < 99
    assert 0 < figures["latents_relative"] < 1e-2
    assert figures["another_seed_psnr"] < 25
    assert figures["psnr"] <= found["compiled"]["figures"]["psnr"]  # diffusers runs in fp32 here
    assert 0 < found["option fixed"]["figures"]["relative_error"] < 1e-2
    assert 35 <= found["emoji"]["figures"]["fp16"]["psnr_least"] < 99
    assert found["emoji"]["figures"]["as shipped"]["psnr_least"] == 99
    verified = [check for check in found["parity"]["checks"] if check["name"].startswith("verify: ")]
    assert len(verified) == 6
    assert all(check["holds"] for check in verified)


def test_without_a_gpu_it_says_so(prepared: Path) -> None:
    if not why_no_device():
        pytest.skip("a GPU is here")
    assert call("--run", str(prepared), code=2).startswith("no GPU to run on: ")


def test_parity_sees_other_weights(prepared: Path, report: dict[str, Any], tmp_path: Path) -> None:
    """The run that reads them ends with an error, and goes on from what another has found."""
    folder = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    root = folder / "sd"
    file = next(f for f in read_bundle(root).parts["unet"].files if f.engine == WEIGHTS)
    values = np.fromfile(root / file.path, np.float16)
    (values * np.float16(1.2)).tofile(root / file.path)
    manifest = (root / "bundle.json").read_text(encoding="utf-8")
    (root / "bundle.json").write_text(manifest.replace(file.sha256, sha256(root / file.path)), encoding="utf-8")
    call("--dry-run", "--go-on", "--run", str(folder), "--out", str(tmp_path), "--only", "parity", code=1)
    found = read_report(tmp_path)["results"]
    assert found["ours"] == report["results"]["ours"]  # kept from the run before
    failed = {check["name"] for check in found["parity"]["checks"] if not check["holds"]}
    assert failed >= {"verify: unet", "its latents are the CPU's"}
