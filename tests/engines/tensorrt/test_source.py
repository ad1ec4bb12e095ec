"""What engine files are built from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import edgediff
from edgediff.bundle.manifest import PLAIN
from edgediff.bundle.reading import read_bundle
from edgediff.engines.tensorrt.source import source_of
from edgediff.errors import BundleError, EngineError


def test_the_graph_without_fused_attention(half_bundle: Path) -> None:
    bundle = read_bundle(half_bundle)
    plain = next(f for f in bundle.parts["unet"].files if f.engine == PLAIN)
    graph = source_of(bundle, "unet")
    assert (graph.path.name, graph.graph) == (plain.path, plain.sha256)
    assert source_of(bundle, "text_encoder").path.name == "text_encoder.onnx"


def test_other_precisions_are_named(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="unet: TensorRT builds from graphs exported with --precision fp16"):
        source_of(read_bundle(tiny_bundle), "unet")  # fp32, and fused
    with pytest.raises(EngineError, match="bundle 'edgediff-emoji-core64' has fp16-weights"):
        source_of(edgediff.load().bundle, "unet")


def test_a_damaged_graph(half_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(half_bundle, tmp_path / "copy"))
    graph = source_of(read_bundle(root), "unet").path
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="is damaged"):
        source_of(read_bundle(root), "unet")
