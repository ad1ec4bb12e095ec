"""The manifest: what is read, and every way in which it may be broken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import edgediff
from edgediff import BundleError, BundleNotFoundError
from edgediff.bundle.manifest import KINDS, PARTS, sha256
from edgediff.bundle.reading import read_bundle

from ..support.manifest import edit

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "edgediff" / "bundle" / "bundle.schema.json").read_text(encoding="utf-8"))


def test_built_in_model_follows_the_schema_and_fits() -> None:
    found = read_bundle()
    jsonschema.validate(json.loads((found.root / "bundle.json").read_text(encoding="utf-8")), SCHEMA)
    for part, file in found.files():
        found.path(part, file)
    assert sum(p.stat().st_size for p in found.root.iterdir()) <= 20_000_000
    assert "OFL" in found.licence


def test_exported_bundle_follows_the_schema(tiny_bundle: Path) -> None:
    jsonschema.validate(json.loads((tiny_bundle / "bundle.json").read_text(encoding="utf-8")), SCHEMA)


def test_schema_names_what_the_reader_takes() -> None:
    from edgediff.sampling.samplers import SAMPLERS
    from edgediff.sampling.schedule import BETAS, PREDICTIONS, SPACINGS

    schedule = SCHEMA["properties"]["schedule"]["properties"]
    assert tuple(schedule["beta_schedule"]["enum"]) == tuple(BETAS)
    assert tuple(schedule["prediction_type"]["enum"]) == PREDICTIONS
    assert tuple(schedule["timestep_spacing"]["enum"]) == SPACINGS
    assert SCHEMA["properties"]["defaults"]["properties"]["sampler"]["enum"] == list(SAMPLERS)
    assert tuple(SCHEMA["properties"]["parts"]["propertyNames"]["enum"]) == PARTS
    assert tuple(SCHEMA["properties"]["kind"]["enum"]) == KINDS


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="is not a folder"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no bundle\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "holds list"), ("{}", "format None")])
def test_not_a_manifest(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        read_bundle(tmp_path)


def _drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def _put(value: Any, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put(99, "format"), "reads format 1"),
        (_drop("name"), "name is missing"),
        (_drop("latent", "scale"), r"latent\.scale is missing"),
        (_put("four", "latent", "channels"), r"latent\.channels is 'four'; it must be of type int"),
        (_put(True, "latent", "factor"), r"latent\.factor is True"),
        (_put(0, "latent", "factor"), r"latent\.factor is 0; it must be 1 \.\. 256"),
        (_drop("parts", "unet"), "part unet is missing; there are"),
        (_put({"files": [], "inputs": [], "outputs": []}, "parts", "unet"), "part unet has no files"),
        (_put({"files": [], "inputs": [], "outputs": []}, "parts", "controlnet"), "unknown part 'controlnet'"),
        (_put("cubic", "schedule", "beta_schedule"), "no beta_schedule 'cubic'; choose from linear"),
        (_put([], "text"), "part text_encoder has no tokenizer; text names 0"),
        (_put(-1, "text", 0, "max_length"), r"text\.max_length is -1; it must be 3 \.\. 4096"),
        (_put([[1, 2]], "preview", "weight"), "must be 4 x 3"),
        (_put([1] * 4, "preview", "weight"), "must be 4 x 3"),
        (_put([["a"] * 3] * 4, "preview", "weight"), "must be 4 x 3"),
        (_put("flux", "kind"), "unknown kind 'flux'"),
        (_put(-1.0, "latent", "scale"), r"latent\.scale is -1\.0; it must be 0\.001 \.\. 1000"),
        (_put(math.nan, "latent", "scale"), "it holds NaN"),
        (_put(10**400, "latent", "scale"), "a whole number of 401 digits"),
        (_put("restart", "defaults", "sampler"), "defaults: no sampler 'restart'"),
        (_put(0, "defaults", "num_inference_steps"), r"defaults\.num_inference_steps is 0; it must be 1"),
        (_put(30, "defaults", "width"), "the default size 30x32"),
        (
            _put("x", "parts", "unet", "outputs", 0, "name"),
            r"part unet has outputs \['x'\]; it must have \['out_sample",
        ),
        (_put([1], "licence"), "licence is"),
        (_put(3, "provenance"), "provenance is 3"),
        (_put("../unet.onnx", "parts", "unet", "files", 0, "path"), "leaves the bundle"),
        (_put("/etc/passwd", "parts", "unet", "files", 0, "path"), "leaves the bundle"),
        (_put("C:\\unet.onnx", "parts", "unet", "files", 0, "path"), "leaves the bundle"),
        (_put("one", "parts", "unet", "files", 0, "size"), r"file\.size is 'one'"),
    ],
)
def test_malformed(damaged: Callable[[], Path], change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_bundle(edit(damaged(), change))


def test_unreadable(damaged: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = damaged()
    found = read_bundle(root)

    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(BundleError, match=r"cannot be read: .*Permission denied"):
        read_bundle(root)
    with pytest.raises(BundleError, match=r"unet: unet\.onnx cannot be read: .*Permission denied"):
        found.path("unet", found.parts["unet"].files[0])


def test_damaged_files(damaged: Callable[[], Path]) -> None:
    root = damaged()
    unet = root / "unet.onnx"
    whole = bytearray(unet.read_bytes())
    whole[len(whole) // 2] ^= 1
    unet.write_bytes(whole)
    with pytest.raises(BundleError, match=r"unet: unet\.onnx is damaged: its sha256"):
        edgediff.load(root).engine("unet")
    unet.write_bytes(whole[:-5])
    with pytest.raises(BundleError, match=r"unet: unet\.onnx has \d+ bytes, the manifest says"):
        edgediff.load(root).engine("unet")
    unet.unlink()
    with pytest.raises(BundleNotFoundError, match=r"unet needs unet\.onnx"):
        edgediff.load(root).engine("unet")


def test_a_file_that_hashes_right_but_is_no_model(damaged: Callable[[], Path]) -> None:
    root = damaged()
    (root / "unet.onnx").write_bytes(b"not a model")

    def agree(data: dict[str, Any]) -> None:
        data["parts"]["unet"]["files"][0] |= {"size": 11, "sha256": sha256(root / "unet.onnx")}

    with pytest.raises(BundleError, match=r"unet: .*unet\.onnx is not an ONNX file: it is a text"):
        edgediff.load(edit(root, agree)).engine("unet")


def test_a_manifest_that_describes_another_graph(damaged: Callable[[], Path]) -> None:
    root = edit(damaged(), lambda data: data["parts"]["unet"]["inputs"].reverse())
    with pytest.raises(BundleError, match="the manifest says"):
        edgediff.load(root).engine("unet")


def test_no_backend_for_any_file(damaged: Callable[[], Path]) -> None:
    root = edit(damaged(), _put("abacus", "parts", "unet", "files", 0, "engine"))
    with pytest.raises(edgediff.EngineError, match=r"unet cannot run here: unet\.onnx: no backend for engine 'abacus'"):
        edgediff.load(root).engine("unet")
