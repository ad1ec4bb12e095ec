"""Every number, text and list of a manifest has a bound, which reader and schema share; no manifest is slow to read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgediff import BundleError
from edgediff.bundle import bounds
from edgediff.bundle.reading import read_bundle

from ..support.manifest import edit
from .test_reading import SCHEMA, _put

Change = Callable[[dict[str, Any]], Any]
TABLES = {"latent": bounds.LATENT, "defaults": bounds.DEFAULTS, "schedule": bounds.SCHEDULE}


def write(root: Path, text: str) -> Path:
    (root / "bundle.json").write_text(text, encoding="utf-8")
    return root


def text_of(root: Path) -> str:
    return (root / "bundle.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES)
def test_the_schema_has_the_readers_bounds(table: str) -> None:
    described = SCHEMA["properties"][table]["properties"]
    told = {name: (d["minimum"], d["maximum"]) for name, d in described.items() if "maximum" in d}
    assert told == {name: tuple(limits) for name, limits in TABLES[table].items()}


def test_the_schema_has_the_readers_other_bounds() -> None:
    top, defs = SCHEMA["properties"], SCHEMA["$defs"]
    text = top["text"]["items"]["properties"]
    assert {k: (text[k]["minimum"], text[k]["maximum"]) for k in bounds.TEXT} == bounds.TEXT
    part = top["parts"]["additionalProperties"]["properties"]
    assert part["files"]["maxItems"] == bounds.MAX_FILES
    assert part["inputs"]["maxItems"] == part["outputs"]["maxItems"] == bounds.MAX_TENSORS
    assert top["embeddings"]["maxItems"] == bounds.MAX_WORDS
    assert top["golden"]["properties"]["pictures"]["maxItems"] == bounds.MAX_PICTURES
    floor = top["golden"]["properties"]["floor"]
    assert (floor["minimum"], floor["maximum"]) == bounds.FLOOR
    assert (top["clip_sample"]["minimum"], top["clip_sample"]["maximum"]) == bounds.CLIP_SAMPLE
    assert top["name"]["maxLength"] == defs["file"]["properties"]["path"]["maxLength"] == bounds.MAX_NAME
    assert top["licence"]["maxLength"] == bounds.MAX_TEXT
    assert defs["file"]["properties"]["size"]["maximum"] == bounds.MAX_BYTES
    sizes = defs["tensor"]["properties"]["shape"]["items"]["anyOf"][0]
    assert (sizes["minimum"], sizes["maximum"]) == (1, bounds.MAX_SIDE)


@pytest.mark.parametrize(("section", "name"), [(s, n) for s, table in TABLES.items() for n in table])
def test_beyond_a_bound_reader_and_schema_refuse(damaged: Callable[[], Path], section: str, name: str) -> None:
    low, high = TABLES[section][name]
    root = damaged()
    kept = json.loads(text_of(root))
    for value in (low - 1, high + 1):
        changed = {**kept, section: {**kept[section], name: value}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, SCHEMA)
        with pytest.raises(BundleError, match=rf"{section}\.{name} is "):
            read_bundle(write(root, json.dumps(changed)))


BIG, LONE = 10**400, "\ud800"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_put(BIG, "preview", "weight", 0, 0), "a whole number of 401 digits"),
        (_put(10**12, "preview", "weight", 0, 0), "of at most 1e"),
        (_put(BIG, "schedule", "steps_offset"), "a whole number of 401 digits"),
        (_put([], "parts", "text_encoder", "inputs", 0, "shape"), r"input input_ids has shape \[\]; it must have 2"),
        (_put(["batch"], "parts", "unet", "outputs", 0, "shape"), "it must have 4 dimensions"),
        (_put(["batch"] * 1000, "parts", "unet", "outputs", 0, "shape"), r"shape has 1000 entries; it may have 8"),
        (_put(["batch", 0], "parts", "text_encoder", "inputs", 0, "shape"), "something other than names and sizes"),
        (_put("complex64", "parts", "unet", "inputs", 0, "dtype"), "is of type 'complex64'; choose from"),
        (_put("none", "parts", "unet", "files", 0, "sha256"), "it must be 64 digits"),
        (_put("a\nb", "parts", "unet", "files", 0, "path"), "letters that print"),
        (_put(-1, "parts", "unet", "files", 0, "size"), r"file\.size is -1"),
        (_put(True, "parity", "unet", "ceiling"), r"parity\.unet\.ceiling is True"),
        (_put("0.1", "parity", "unet", "relative"), r"parity\.unet\.relative is '0\.1'"),
        (_put(None, "parity", "unet", "relative"), r"parity\.unet\.relative is None"),
        (_put(5, "parity", "unet", "kept_fp32"), r"parity\.unet\.kept_fp32 is 5"),
        (_put(5, "parity", "unet"), r"unet is 5; it must be of type dict"),
        (_put({"a": 1}, "provenance", "reference"), r"provenance\.reference is"),
        (_put(True, "golden", "floor"), r"golden\.floor is True"),
        (_put(1e9, "golden", "floor"), r"golden\.floor is 1000000000\.0; it must be 0 \.\. 1000"),
        (_put([{}] * 1_000_000, "golden", "pictures"), "read.*it holds more than"),
        (_put([{}] * 17, "golden", "pictures"), r"pictures has 17 entries; it may have 16"),
        (_put(2**40, "golden", "file", "size"), "golden tensors have at most"),
        (_put(0.0, "clip_sample"), r"clip_sample is 0\.0"),
        (_put(LONE, "name"), "half a character"),
        (_put("a\0b", "licence"), "NUL"),
        (_put({LONE: 1}, "provenance"), "half a character"),
        (_put({"a": [{"b": LONE}]}, "parity", "pictures"), "half a character"),
        (_put("x" * 2000, "name"), "name has 2000 characters"),
        (_put("x" * 100_000, "provenance", "exporter"), "a text of 100000 characters"),
        (_put(1.0, "format"), r"has format 1\.0"),
    ],
)  # fmt: skip
def test_what_no_exporter_writes(damaged: Callable[[], Path], change: Change, said: str) -> None:
    with pytest.raises(BundleError, match=said) as caught:
        read_bundle(edit(damaged(), change))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["latent.scale", "golden.floor", "defaults.guidance_scale", "parity.unet.ceiling"])
def test_numbers_that_are_no_float64(damaged: Callable[[], Path], name: str) -> None:
    keys = name.split(".")
    root = edit(damaged(), _put(0.123454321, *keys))
    text = text_of(root)
    assert text.count("0.123454321") == 1
    for number in ("1e999", "-1e999", "Infinity", "NaN"):
        with pytest.raises(BundleError, match="it holds"):
            read_bundle(write(root, text.replace("0.123454321", number)))


def test_one_file_stands_for_one_entry(damaged: Callable[[], Path]) -> None:
    def again(data: dict[str, Any]) -> None:
        data["parts"]["unet"]["files"] *= 2

    def many(data: dict[str, Any]) -> None:
        data["parts"]["unet"]["files"] *= 5000

    root = damaged()
    kept = text_of(root)
    with pytest.raises(BundleError, match=r"file 'unet\.onnx' is listed twice"):
        read_bundle(edit(root, again))
    with pytest.raises(BundleError, match="files has 5000 entries; it may have 64"):
        read_bundle(edit(write(root, kept), many))


def test_a_tensor_is_listed_once(damaged: Callable[[], Path]) -> None:
    def again(data: dict[str, Any]) -> None:
        data["parts"]["unet"]["inputs"].append(data["parts"]["unet"]["inputs"][2])

    with pytest.raises(BundleError, match="has 'encoder_hidden_states' twice among its inputs"):
        read_bundle(edit(damaged(), again))


@pytest.mark.parametrize("nested", ["[" * 40 + "]" * 40, '{"a":' * 40 + "1" + "}" * 40, "[" * 100_000 + "]" * 100_000])
def test_no_deeper_than_anybody_writes(damaged: Callable[[], Path], nested: str) -> None:
    root = damaged()
    text = text_of(root)
    with pytest.raises(BundleError, match="deep"):
        read_bundle(write(root, text.replace('"provenance": {', f'"provenance": {{"x": {nested},', 1)))


@pytest.mark.parametrize(("factor", "multiple"), [(1, 4), (2, 4), (8, 8)])
def test_a_factor_that_the_decoder_contradicts(damaged: Callable[[], Path], factor: int, multiple: int) -> None:
    def change(data: dict[str, Any]) -> None:
        data["latent"] |= {"factor": factor, "size_multiple": multiple}
        decoder = data["parts"]["vae_decoder"]
        decoder["inputs"][0]["shape"][2:] = [8, 8]
        decoder["outputs"][0]["shape"][2:] = [32, 32]

    said = "there is a part vae_decoder" if factor == 1 else "has 8 latent cells for 32 pixels a side"
    with pytest.raises(BundleError, match=re.escape(said)):
        read_bundle(edit(damaged(), change))


@pytest.mark.parametrize("sampler", ["ddim", "deis_3", "lms", "unipc_3"])
def test_no_manifest_plans_for_long(damaged: Callable[[], Path], sampler: str) -> None:
    """The most that is taken; what is more is refused at once."""

    def change(data: dict[str, Any]) -> None:
        data["schedule"] |= {"num_train_timesteps": 100_000, "beta_start": 1e-6, "beta_end": 2e-5}
        data["defaults"] |= {"num_inference_steps": 1_000, "sampler": sampler}

    root = edit(damaged(), change)
    started = time.process_time()
    assert read_bundle(root).defaults.num_inference_steps == 1_000
    assert time.process_time() - started < 3
    started = time.process_time()
    with pytest.raises(BundleError, match="num_inference_steps is 100000"):
        read_bundle(edit(root, _put(100_000, "defaults", "num_inference_steps")))
    assert time.process_time() - started < 0.5


def test_a_word_stands_for_one_file(damaged: Callable[[], Path]) -> None:
    def twice(data: dict[str, Any]) -> None:
        file = {"engine": "embedding", "precision": "-", "size": 1, "sha256": "0" * 64}
        data["embeddings"] = [{"word": "dotty", "file": {**file, "path": name}} for name in ("a", "b")]

    with pytest.raises(BundleError, match="embeddings: the word 'dotty' is listed twice"):
        read_bundle(edit(damaged(), twice))
