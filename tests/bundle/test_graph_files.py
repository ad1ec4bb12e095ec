"""Weights beside an ONNX file: wherever a graph names them, they lie inside, are whole, and are listed for the part."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx, which writes the graphs, is not installed (extra test)")

import onnx
from onnx import TensorProto, helper

import edgediff
from edgediff import BundleError
from edgediff.bundle.graph_files import graph_path
from edgediff.bundle.manifest import sha256
from edgediff.bundle.onnx_file.walk import read_header
from edgediff.bundle.reading import read_bundle
from edgediff.engines.tensorrt.source import source_of

Edit = Callable[[onnx.ModelProto], Any]


@pytest.fixture
def half(half_bundle: Path, tmp_path: Path) -> Path:
    """A copy of a bundle whose weights lie beside its graphs."""
    return Path(shutil.copytree(half_bundle, tmp_path / "half"))


def signed(root: Path, part: str = "unet") -> Path:
    """Write anew what the manifest says of a part's files."""
    path = root / "bundle.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for file in data["parts"][part]["files"]:
        if (root / file["path"]).exists():
            file |= {"size": (root / file["path"]).stat().st_size, "sha256": sha256(root / file["path"])}
    path.write_text(json.dumps(data), encoding="utf-8")
    return root


def edited(root: Path, edit: Edit, name: str = "unet.onnx") -> Path:
    """Change a graph of the U-Net, and sign it."""
    model = onnx.load(str(root / name), load_external_data=False)
    edit(model)
    (root / name).write_bytes(model.SerializeToString())
    return signed(root)


def opened(root: Path, k: int = 0) -> Path:
    bundle = read_bundle(root)
    return graph_path(bundle, "unet", bundle.parts["unet"].files[k])


def outside(location: str, **facts: str) -> TensorProto:
    """A tensor whose values lie in another file."""
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **facts}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def initializer(tensor: TensorProto) -> Edit:
    return lambda model: model.graph.initializer.append(tensor)


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["constant"], value=tensor)


def inner(tensor: TensorProto, depth: int = 1) -> onnx.GraphProto:
    graph = helper.make_graph([], "inner", [], [], [tensor])
    for _ in range(depth):
        node = helper.make_node("If", ["x"], ["y"], then_branch=graph)
        graph = helper.make_graph([node], "inner", [], [])
    return graph


def sparse(tensor: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor, dims=[9])


def function(node: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("f", "F", [], ["y"], [node], [helper.make_opsetid("", 18)])


def with_default(tensor: TensorProto) -> onnx.FunctionProto:
    made = function(helper.make_node("Identity", ["x"], ["y"]))
    made.attribute_proto.append(helper.make_attribute("value", tensor))
    return made


# Every place of onnx.proto where a tensor may lie.
PLACES: dict[str, Callable[[TensorProto], Edit]] = {
    "an initializer": initializer,
    "a constant": lambda t: lambda m: m.graph.node.append(constant(t)),
    "a list of tensors": lambda t: lambda m: m.graph.node.append(helper.make_node("A", [], ["a"], domain="d", v=[t])),
    "a graph in a node": lambda t: lambda m: m.graph.node.append(inner(t).node[0]),
    "a graph in graphs": lambda t: lambda m: m.graph.node.append(inner(t, 4).node[0]),
    "a list of graphs": lambda t: (
        lambda m: m.graph.node.append(helper.make_node("A", [], ["a"], domain="d", v=[inner(t)]))
    ),
    "a sparse initializer": lambda t: lambda m: m.graph.sparse_initializer.append(sparse(t)),
    "sparse indices": lambda t: lambda m: m.graph.sparse_initializer.append(onnx.SparseTensorProto(indices=t)),
    "a sparse constant": lambda t: (
        lambda m: m.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse(t)))
    ),
    "a function": lambda t: lambda m: m.functions.append(function(constant(t))),
    "a function's default": lambda t: lambda m: m.functions.append(with_default(t)),
    "a graph in a function": lambda t: lambda m: m.functions.append(function(inner(t).node[0])),
    "a graph for training": lambda t: lambda m: m.training_info.add().algorithm.initializer.append(t),
}


@pytest.mark.parametrize("place", PLACES)
def test_weights_are_found_wherever_they_are_named(half: Path, place: str) -> None:
    (half / "unlisted.bin").write_bytes(bytes(16))
    edited(half, PLACES[place](outside("unlisted.bin")))
    with pytest.raises(BundleError, match=r"unet\.onnx keeps weights in 'unlisted\.bin', which the manifest does not"):
        opened(half)


def test_every_place_is_one_where_onnx_finds_weights() -> None:
    """onnx's own walk names the same tensors; it does not look into functions and training."""
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    for place, put in PLACES.items():
        model = helper.make_model(helper.make_graph([], "g", [], []))
        put(outside("w.bin"))(model)
        found = [t for t in _get_all_tensors(model) if uses_external_data(t)]
        known = not any(word in place for word in ("sparse", "function", "training"))
        assert len(found) >= known, place


def test_what_an_export_wrote_is_found(half: Path) -> None:
    for k in range(2):  # the graph that runs, and the plain one over the same weights
        path = opened(half, k)
        tensors = onnx.load(str(path), load_external_data=False).graph.initializer
        facts = [{e.key: e.value for e in t.external_data} for t in tensors if t.external_data]
        end = max(int(f["offset"]) + int(f["length"]) for f in facts)
        assert read_header(path).external == {"unet.onnx.data": end}
    assert source_of(read_bundle(half), "unet").path == half / "unet.plain.onnx"


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "c:/w", "a\\b", "*/_ORT_MEM_ADDR_/*", ""]
)
def test_names_that_leave_the_folder(half: Path, location: str) -> None:
    edited(half, initializer(outside(location, offset="0", length="16")))
    with pytest.raises(BundleError, match="which leaves its folder"):
        opened(half)
    with pytest.raises(BundleError, match="which leaves its folder"):
        edgediff.load(half).engine("unet")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"offset": "83200", "length": "16"}, "up to byte 83216; it has 83200"),
        ({"offset": "83190"}, "up to byte 83206; it has 83200"),
        ({"length": "1000000000000"}, "up to byte 1000000000000; it has 83200"),
        ({"offset": "-4"}, "the offset of a tensor's values is '-4'"),
        ({"length": "1" * 40}, "the length of a tensor's values is '1111"),
        ({"offset": "\u0663"}, "the offset of a tensor's values is"),
    ],
)
def test_values_beyond_the_file(half: Path, facts: dict[str, str], said: str) -> None:
    edited(half, initializer(outside("unet.onnx.data", **facts)))
    with pytest.raises(BundleError, match=said):
        opened(half)


def test_a_fact_that_is_said_twice(half: Path) -> None:
    tensor = outside("unet.onnx.data")
    tensor.external_data.add(key="location", value="../w.bin")
    edited(half, initializer(tensor))
    with pytest.raises(BundleError, match="says twice what its 'location' is"):
        opened(half)


def test_listed_for_another_part(half: Path) -> None:
    edited(half, initializer(outside("vae_decoder.onnx.data")))
    with pytest.raises(BundleError, match=r"vae_decoder\.onnx\.data', which the manifest does not list as onnx-data"):
        opened(half)


def test_a_link_out_of_the_bundle(half: Path) -> None:
    (half / "unet.onnx.data").rename(half.parent / "elsewhere")
    try:
        (half / "unet.onnx.data").symlink_to(half.parent / "elsewhere")
    except OSError as error:
        pytest.skip(f"no links here: {error}")
    with pytest.raises(BundleError, match=r"unet\.onnx\.data' is a link out of"):
        opened(half)
    with pytest.raises(BundleError, match=r"unet\.onnx\.data' is a link out of"):
        source_of(read_bundle(half), "unet")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
def test_a_pipe_in_their_place(half: Path) -> None:
    (half / "unet.onnx.data").unlink()
    os.mkfifo(half / "unet.onnx.data")
    with pytest.raises(BundleError, match="which is not in"):
        opened(half)


def test_weights_that_were_changed(half: Path) -> None:
    """All that a graph names are hashed, whatever their own names."""

    def rename(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for fact in tensor.external_data:
                if fact.key == "location":
                    fact.value = "numbers"

    data = json.loads((half / "bundle.json").read_text(encoding="utf-8"))
    for file in data["parts"]["unet"]["files"]:
        file["path"] = file["path"].replace("unet.onnx.data", "numbers")
    (half / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    (half / "unet.onnx.data").rename(half / "numbers")
    edited(half, rename)
    edited(half, rename, "unet.plain.onnx")
    edgediff.load(half).engine("unet")
    raw = bytearray((half / "numbers").read_bytes())
    raw[5] ^= 1
    (half / "numbers").write_bytes(raw)
    with pytest.raises(BundleError, match="numbers is damaged"):
        edgediff.load(half).engine("unet")


def test_files_that_are_read_otherwise(half: Path) -> None:
    def compiled(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("EPContext", [], ["c"], domain="com.microsoft"))

    edited(half, compiled)
    with pytest.raises(BundleError, match="holds EPContext, which opens a file of compiled code"):
        opened(half)
    data = json.loads((half / "bundle.json").read_text(encoding="utf-8"))
    data["parts"]["unet"]["files"][0]["path"] = "unet.ORT"
    (half / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    (half / "unet.onnx").rename(half / "unet.ORT")
    with pytest.raises(BundleError, match="is in ONNX Runtime's own format"):
        opened(half)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\xaa\x80\x80\x80\x80\x01\x00", "a field has the number"),  # cut to 32 bits, it would be another
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "more than 64 bits"),
        (b"\x3a" + b"\xff" * 11, "goes on and on"),
        (b"\x0b\x0c", "has the wire type 3"),
        (b"\x3a\x7f", "goes beyond its message"),
    ],
)
def test_bytes_that_two_readers_may_read_otherwise(half: Path, raw: bytes, said: str) -> None:
    path = half / "unet.onnx"
    path.write_bytes(path.read_bytes() + raw)
    signed(half)
    with pytest.raises(BundleError, match=f"is not an ONNX file: .*{said}"):
        opened(half)


def test_no_graph_is_too_deep_to_be_walked(half: Path) -> None:
    edited(half, lambda model: model.graph.node.append(inner(outside("unet.onnx.data"), 30).node[0]))
    with pytest.raises(BundleError, match="more than 16 deep"):
        opened(half)
