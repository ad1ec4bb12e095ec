"""Golden tensors of strangers: arguments that no export writes, tensors of any name, and none that is not finite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgediff import BundleError
from edgediff.bundle.golden import ARGUMENTS, cases_of, golden_picture, read_golden
from edgediff.bundle.manifest import sha256
from edgediff.bundle.reading import read_bundle
from edgediff.cli.main import main

Folder = Callable[[], Path]
Tensors = dict[str, np.ndarray]


def with_tensors(root: Path, change: Callable[[Tensors], Any]) -> Path:
    """Change the golden tensors, and sign them."""
    path = root / "golden.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    data = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    data["golden"]["file"] |= {"size": path.stat().st_size, "sha256": sha256(path)}
    (root / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    return root


def with_call(root: Path, **arguments: Any) -> Path:
    data = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    data["golden"]["pictures"][0] |= arguments
    (root / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    return root


def verified(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``edgediff verify`` prints, which must find something."""
    assert main(["verify", str(root), "--threads", "1"]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    return printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"self": 1}, "no argument 'self' of a golden picture"),
        ({"image": "/etc/passwd"}, "no argument 'image' of a golden picture"),
        ({"mask_image": "/dev/zero"}, "no argument 'mask_image'"),
        ({"num_images_per_prompt": 10**6}, "no argument 'num_images_per_prompt'"),
        ({"on_x0": 1}, "no argument 'on_x0'"),
        ({"output_type": "latent"}, "no argument 'output_type'"),
        ({"width": 16384}, "width is 16384, which no export writes"),
        ({"height": True}, "height is True, which no export writes"),
        ({"num_inference_steps": 1000}, "num_inference_steps is 1000, which no export writes"),
        ({"prompt": ["a"] * 1000}, "which no export writes"),
        ({"seed": [1, 2]}, "seed is [1, 2], which no export writes"),
        ({"sampler": 5}, "sampler is 5, which no export writes"),
        ({"sampler": "plms2"}, "no sampler 'plms2'"),
    ],
)
def test_calls_that_no_export_writes(
    damaged: Folder, arguments: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = verified(with_call(damaged(), **arguments), capsys)
    assert said in next(line for line in out.splitlines() if line.startswith("BAD picture 1"))
    assert "ok  picture 2" in out


def test_arguments_are_those_that_an_export_writes(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    assert bundle.golden is not None
    tensors = read_golden(bundle, bundle.golden)
    for k, call in enumerate(bundle.golden.pictures):
        assert set(call) <= set(ARGUMENTS)
        assert golden_picture(bundle.golden, k, tensors).picture.shape == (32, 32, 3)


PICTURE = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("picture.0.self", np.zeros(1), "golden tensor 'picture.0.self' is no argument; choose from image"),
        ("picture.0.on_x0", np.zeros(1), "is no argument"),
        ("picture.0.image.x", np.zeros(1), "is no argument"),
        ("picture.0.latents", np.zeros((1, 4, 9, 9), np.float32), "latents have shape (1, 4, 9, 9)"),
        ("picture.0", np.zeros((32, 32, 3)), "is float64 [32, 32, 3]; pictures are uint8"),
        ("picture.0", np.zeros((32, 32), np.uint8), "is uint8 [32, 32]; pictures are uint8"),
        ("picture.0", np.zeros((8, 8, 3), np.uint8), "cannot be compared"),
        ("unet.0.in.self", np.zeros(1), "a golden case of unet has inputs"),
        ("unet.1.in.self", np.zeros(1), "a golden case of unet has inputs"),
        ("unet.1.in.sample", np.zeros((1, 4, 8)), "has sample float64[1, 4, 8]; it takes float32[batch, 4"),
        ("unet.1.in.sample", np.zeros((1, 5, 8, 8), np.float32), "unet failed on"),
        ("unet.1.out.self", np.zeros(1), "golden output 'self' is none of the part's"),
        ("unet.1.out.out_sample", np.zeros(3), "differs from torch by inf"),
        ("unet.1.in", np.zeros(1), "is none of PART.K.in.NAME"),
        ("unet.1.in.a\nBAD", np.zeros(1), "'a\\nBAD'"),
        ("unet.1.out.out_sample", np.full((1, 4, 8, 8), np.nan, np.float32), "holds values that are not finite"),
    ],
)
def test_tensors_that_no_export_writes(
    damaged: Folder, name: str, values: np.ndarray, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = verified(with_tensors(damaged(), lambda tensors: tensors.update({name: values})), capsys)
    assert said in out
    assert all(c.isprintable() or c == "\n" for c in out)


def test_golden_values_that_are_not_finite_prove_nothing(damaged: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison with NaN is never larger than the ceiling."""

    def spoil(tensors: Tensors) -> None:
        for name in list(tensors):
            if name.startswith("unet.") and ".out." in name:
                tensors[name] = np.full_like(tensors[name], np.nan)

    assert "holds values that are not finite" in verified(with_tensors(damaged(), spoil), capsys)


def test_a_missing_picture(damaged: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "golden tensor 'picture.1' is missing" in verified(
        with_tensors(damaged(), lambda tensors: tensors.pop("picture.1")), capsys
    )


def test_more_cases_than_an_export_writes() -> None:
    with pytest.raises(BundleError, match="part unet has 100 golden cases; it may have 64"):
        cases_of("unet", {f"unet.{k}.in.sample": np.zeros(1) for k in range(100)})


def test_bytes_that_are_no_tensors(damaged: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    root = damaged()
    for raw in (b"", b"{" * 500, (1 << 62).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0[]"):
        (root / "golden.safetensors").write_bytes(raw)
        data = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
        path = root / "golden.safetensors"
        data["golden"]["file"] |= {"size": len(raw), "sha256": sha256(path)}
        (root / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
        assert "golden.safetensors cannot be read" in verified(root, capsys)
