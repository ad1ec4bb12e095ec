"""Folders that the real optimum writes, and its own pipelines on them; ``.ci/optimum`` installs it and runs these.

Both start from the same noise and read the same graphs, so that they differ by rounding alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optimum.onnxruntime", reason="optimum, whose pipelines are the judges, is not installed")

import optimum.onnxruntime as ort
import torch
from optimum.exporters.onnx import main_export
from PIL import Image

import edgediff
from edgediff.bundle.reading import read_bundle
from edgediff.verify import prove
from edgediff_export.adopting.adopt import adopt
from edgediff_export.optimum_layout.write import export_optimum

from ..support.families import make

SIDE, SEED = 32, 7
PIPELINES = {
    "sd15": ort.ORTStableDiffusionPipeline,
    "sdxl": ort.ORTStableDiffusionXLPipeline,
    "lcm": ort.ORTLatentConsistencyModelPipeline,
    "inpaint": ort.ORTStableDiffusionInpaintPipeline,
}
TASKS = {"inpaint": "inpainting"}
Folder = Callable[[str], Path]


@pytest.fixture(scope="session")
def source(shared: Callable[..., Path]) -> Folder:
    """A family's folder as diffusers saves it."""
    return lambda name: shared(f"optimum-source-{name}", functools.partial(_make, name))


def _make(name: str, root: Path) -> None:
    make(name, root)


@pytest.fixture(scope="session")
def written(source: Folder, shared: Callable[..., Path]) -> Folder:
    """A family's folder as optimum exports it; ``NAME-fp16`` in half precision."""

    def write(name: str, root: Path) -> None:
        family, _, dtype = name.partition("-")
        task = TASKS.get(family, "text-to-image")
        main_export(str(source(family)), root, task=task, do_validation=False, dtype=dtype or None)

    return lambda name: shared(f"optimum-{name}", functools.partial(write, name))


def calls(name: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of one picture, for optimum and for us."""
    theirs: dict[str, Any] = {"prompt": "a red apple on a table", "guidance_scale": 5.0, "num_inference_steps": 5}
    if name != "lcm":
        theirs["negative_prompt"] = "a blue fish"
    theirs |= {"height": SIDE, "width": SIDE, **more}
    ours = {**theirs, "seed": SEED}
    if name == "inpaint":
        picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[SIDE // 4 : SIDE // 2, SIDE // 8 :] = 255
        ours |= {"image": picture, "mask_image": mask}
        theirs |= {"image": Image.fromarray(picture), "mask_image": Image.fromarray(mask), "strength": 1.0}
    return theirs, ours


def difference(name: str, folder: Path, opened: Path | None = None, **more: Any) -> tuple[float, float]:
    """The largest difference to optimum's pipeline on ``folder``: of the final latents, and of pictures (of 255)."""
    pipe = PIPELINES[name].from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    mine = edgediff.load(folder if opened is None else opened)
    theirs, ours = calls(name, **more)

    def wanted(kind: str) -> Any:
        seeds = [torch.Generator().manual_seed(SEED + k) for k in range(more.get("num_images_per_prompt", 1))]
        return np.asarray(pipe(generator=seeds, output_type=kind, **theirs).images)

    latents = np.abs(mine(output_type="latent", **ours).latents - wanted("latent")).max()
    pictures = np.abs(mine(output_type="np", **ours).array - 255 * wanted("np")).max()
    return float(latents), float(pictures)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_folder_gives_what_optimums_pipeline_gives(name: str, written: Folder) -> None:
    latents, pictures = difference(name, written(name))
    assert latents < 1e-3
    assert pictures < 0.51  # rounding to whole numbers


def test_sdxl_without_a_negative_prompt_and_with_sizes(written: Folder) -> None:
    """Zeros stand for no negative prompt; the sizes are told to the U-Net."""
    assert difference("sdxl", written("sdxl"), negative_prompt=None, original_size=(64, 48))[0] < 1e-3
    assert difference("sdxl", written("sdxl"), num_images_per_prompt=2)[0] < 1e-3


def test_half_precision_goes_in_and_out(written: Folder) -> None:
    """In fp16 the state is rounded between steps in optimum, and is not here."""
    full, half = (edgediff.load(written(name)) for name in ("sd15", "sd15-fp16"))
    _, ours = calls("sd15", output_type="np")
    error = np.abs(full(**ours).array.astype(float) - half(**ours).array).max()
    assert 0 < error < 4


@pytest.mark.parametrize("name", PIPELINES)
def test_optimum_opens_what_we_write_in_its_layout(name: str, source: Folder, tmp_path: Path) -> None:
    out = export_optimum(source(name), tmp_path / name, precision="fp32")
    latents, pictures = difference(name, out)
    assert latents < 1e-3
    assert pictures < 0.51


def test_weights_beside_the_graph_and_in_fp16_open_too(
    source: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgediff_export.onnx_graph.graph.DATA_LIMIT", 10_000)
    out = export_optimum(source("sd15"), tmp_path / "sd15", precision="fp16-weights")
    assert (out / "unet" / "model.onnx.data").is_file()
    assert difference("sd15", out)[0] < 1e-3


def test_an_adopted_bundle_gives_the_same_and_proves_it(written: Folder, tmp_path: Path) -> None:
    for name in ("sdxl", "inpaint"):
        bundle = adopt(written(name), tmp_path / name)
        assert difference(name, written(name), bundle)[0] < 1e-3
        findings = list(prove(edgediff.load(bundle)))
        assert len(findings) == len(read_bundle(bundle).parts) + 2
        assert all(finding.ok for finding in findings), findings
