"""A foreign folder becomes a bundle that proves itself, without torch; what cannot be adopted is refused by name."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgediff
from edgediff import ArgumentError, BundleError, OutputError
from edgediff.bundle.golden import read_golden
from edgediff.bundle.reading import read_bundle
from edgediff.compare import psnr
from edgediff.verify import prove
from edgediff_export.adopting.adopt import adopt
from edgediff_export.adopting.rewire import rewired
from edgediff_export.onnx_graph.graph import read_graph

from ..support import foreign
from ..support.foreign import edit_model, make_foreign

Folder = Callable[[], Path]
Adopted = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_foreign(tiny_bundle, tmp_path_factory.mktemp("foreign") / "tiny")


@pytest.fixture(scope="module")
def adopted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Adopted:
    """The bundle in a precision. Read-only."""
    root = tmp_path_factory.mktemp("adopted")
    return functools.cache(lambda precision: adopt(made, root / precision, precision=precision))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Folder:
    """A fresh copy, to change."""
    return lambda: Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.mark.parametrize(("precision", "floor"), [("fp32", 60), ("fp16", 35), ("fp16-weights", 40), ("int8", 25)])
def test_an_adopted_bundle_draws_what_torch_drew(
    precision: str, floor: float, adopted: Adopted, tiny_bundle: Path
) -> None:
    bundle = read_bundle(adopted(precision))
    assert bundle.provenance["reference"] == "its source"
    assert {file.precision for _, file in bundle.files() if file.engine == "onnx"} == {precision}
    findings = list(prove(edgediff.load(bundle.root)))
    assert [f.ok for f in findings] == [True] * 6, findings
    source = read_bundle(tiny_bundle)
    assert source.golden is not None
    torchs = read_golden(source, source.golden)["picture.0"]  # drawn by torch when the source was exported
    call: dict[str, Any] = {**source.golden.pictures[0], "output_type": "np"}
    assert psnr(edgediff.load(bundle.root)(**call).array[0], torchs) > floor


def test_a_preview_comes_of_the_encoder(adopted: Adopted) -> None:
    step = next(iter(edgediff.load(adopted("fp32")).stream("a tiger", num_inference_steps=2, seed=1)))
    assert step.preview()[0].size == (32, 32)


def test_tables_that_the_timestep_is_multiplied_by_stay_exact(adopted: Adopted) -> None:
    model = onnx.load(str(adopted("fp16-weights") / "unet.onnx"))
    read = {name for node in model.graph.node if node.op_type in ("Sin", "Cos") for name in node.input}
    angles = next(node for node in model.graph.node if set(node.output) & read)
    constants = {n.output[0]: n for n in model.graph.node if n.op_type == "Constant"}
    table = onnx.numpy_helper.to_array(next(constants[n] for n in angles.input if n in constants).attribute[0].t)
    count = table.size
    assert table.dtype == np.float32
    np.testing.assert_allclose(table.ravel(), 10_000.0 ** (-np.arange(count) / count), rtol=1e-6)


def test_whole_timesteps_become_floats(folder: Folder, tiny_bundle: Path, tmp_path: Path) -> None:
    """An adopted U-Net takes timesteps between whole ones, which some samplers need."""
    root = edit_model(folder(), "unet", lambda model: foreign.scalar_timestep(model, "int64"))
    call: dict[str, Any] = {"num_inference_steps": 3, "seed": 1, "sampler": "dpm2", "output_type": "latent"}
    theirs, ours = (
        edgediff.load(path)("a tiger", **call).latents for path in (adopt(root, tmp_path / "b"), tiny_bundle)
    )
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def narrow_weights(model: Any) -> None:
    """Store weights in fp16 and compute in it, as optimum does with dtype="fp16"."""
    from onnx import numpy_helper

    from edgediff_export.onnx_graph.graph import Graph, Weight
    from edgediff_export.precision.fp16 import to_fp16

    weights = {t.name: Weight.of(numpy_helper.to_array(t)) for t in model.graph.initializer}
    del model.graph.initializer[:]
    half = to_fp16(Graph(model, weights))
    found = half.model
    found.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(w.read()).reshape(w.shape), name) for name, w in half.weights.items()
    )
    model.CopyFrom(found)


def test_a_source_in_fp16(folder: Folder, tmp_path: Path) -> None:
    root = folder()
    for part in ("vae_decoder", "vae_encoder"):
        edit_model(edit_model(root, part, narrow_weights), part, foreign.half_io)
    with pytest.raises(BundleError, match=r"vae_decoder: its weights are in fp16, .* take --precision fp16-weights"):
        adopt(root, tmp_path / "bundle")
    bundle = adopt(root, tmp_path / "bundle", precision="fp16-weights")
    assert all(finding.ok for finding in prove(edgediff.load(bundle)))
    stored = read_graph(bundle / "vae_decoder.onnx").weights
    source = read_graph(root / "vae_decoder" / "model.onnx").weights
    name = next(name for name, w in source.items() if np.prod(w.shape) >= 64 and w.dtype == np.float16)
    np.testing.assert_array_equal(stored[f"{name}.fp16"].read(), source[name].read())


def test_what_cannot_be_adopted(made: Path, folder: Folder, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(BundleError, match="is a bundle already; adopt takes folders"):
        adopt(tiny_bundle, out)
    with pytest.raises(ArgumentError, match="no precision 'int4'; choose from fp32"):
        adopt(made, out, precision="int4")
    with pytest.raises(ArgumentError, match="no part 'vae' in"):
        adopt(made, out, part_precision={"vae": "fp32"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(OutputError, match="it exists and is not an empty folder"):
        adopt(made, tmp_path / "full")
    root = edit_model(folder(), "unet", foreign.fix_sizes(2))
    said: list[str] = []
    with pytest.raises(BundleError, match="unet: its graph takes 2 at once and no other number"):
        adopt(root, out, report=said.append)
    assert said == []
    assert not out.exists()
    assert not list(tmp_path.glob(".bundle*"))


def test_a_graph_that_computes_with_whole_timesteps(folder: Folder) -> None:
    def halve(model: Any) -> None:
        foreign.scalar_timestep(model, "int64")
        foreign.rename(model, "timestep", "/halved")
        two = foreign.constant(model, "/two", np.array(2, np.int64))
        foreign.before(model, onnx.helper.make_node("Div", ["timestep", two], ["/halved"], name="/div"))

    root = edit_model(folder(), "unet", halve)
    bundle = read_bundle(root)
    assert bundle.foreign is not None
    graph = read_graph(root / "unet" / "model.onnx")
    with pytest.raises(BundleError, match=r"unet: its graph computes with whole timesteps \(Div '/div'\)"):
        rewired(graph, "unet", bundle.parts["unet"], bundle.foreign.parts["unet"])


def test_the_command_needs_no_torch(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from edgediff_export.adopting.__main__ import main\n"
        f"code = main([{str(made)!r}, {str(tmp_path / 'bundle')!r}, '--precision', 'int8', '--name', 'mine'])\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\nsys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    assert manifest["name"] == "mine"
    run = subprocess.run(
        [sys.executable, "-m", "edgediff", "adopt", str(made), str(tmp_path / "bundle")], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "it exists and is not an empty folder" in run.stderr
