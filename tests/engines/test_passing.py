"""Parts that are let go before the next is opened: the same picture, and one engine at a time."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff import ArgumentError
from edgediff.engines.onnxruntime import BACKEND
from edgediff.engines.session import OnnxRuntimeEngine

CALL: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 3}


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, weakref.ref[Any]]]:
    """Every engine that ONNX Runtime opens, by part; dead ones say None."""
    opened: list[tuple[str, weakref.ref[Any]]] = []
    ordinary = type(BACKEND).open

    def open_(self: Any, bundle: Any, part: str, *more: Any) -> Any:
        engine = ordinary(self, bundle, part, *more)
        opened.append((part, weakref.ref(engine)))
        return engine

    monkeypatch.setattr(type(BACKEND), "open", open_)
    return opened


def test_one_part_is_held_at_a_time(alive: list[tuple[str, weakref.ref[Any]]], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[str, ...]] = []
    ordinary = OnnxRuntimeEngine.__call__

    def call(self: Any, **inputs: Any) -> Any:
        held.append(tuple(part for part, engine in alive if engine() is not None))
        return ordinary(self, **inputs)

    monkeypatch.setattr(OnnxRuntimeEngine, "__call__", call)
    found = edgediff.load(threads=1, release_parts=True)(**CALL)
    assert list(dict.fromkeys(held)) == [("text_encoder",), ("unet",), ("vae_decoder",)]
    assert [part for part, _ in alive] == ["text_encoder", "unet", "vae_decoder"]  # none is opened twice
    assert found.images[0].tobytes() == edgediff.load(threads=1)(**CALL).images[0].tobytes()


def test_calls_of_several_threads(alive: list[tuple[str, weakref.ref[Any]]]) -> None:
    """One takes a part's place while another is in the middle of its picture."""
    expected = edgediff.load(threads=1)(**CALL).latents
    alive.clear()
    pipe, together = edgediff.load(threads=1, release_parts=True), threading.Barrier(2)

    def draw(_: int) -> Any:
        together.wait()
        return [pipe(**CALL).latents for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        for latents in pool.map(draw, range(2)):
            for found in latents:
                np.testing.assert_array_equal(found, expected)


def test_refused() -> None:
    with pytest.raises(ArgumentError, match="release_parts is 1; it must be True or False"):
        edgediff.load(release_parts=1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="release_parts is for device 'cpu'; device is 'cuda'"):
        edgediff.load(device="cuda", release_parts=True)
