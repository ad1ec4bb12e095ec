"""The built-in model with engines that wait to be let in, so that a test says what happens during a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import edgediff

PATIENCE = 60  # seconds, for what takes milliseconds


class Gate:
    """A real engine that counts its calls and lets each wait for ``let``."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs, self.outputs, self.calls = engine, engine.inputs, engine.outputs, 0
        self._lock, self._permits = threading.Lock(), threading.Semaphore(0)

    def __call__(self, **inputs: Any) -> Any:
        with self._lock:
            self.calls += 1
        assert self._permits.acquire(timeout=PATIENCE), "nobody opened the gate"
        return self.engine(**inputs)

    def let(self, calls: int = 1) -> None:
        """Let this many calls through, those that wait and those to come."""
        self._permits.release(calls)


class Gated:
    """A pipeline of its own whose U-Net and decoder are behind gates."""

    def __init__(self) -> None:
        self.pipe = edgediff.load().warm()
        self.unet, self.decoder = (Gate(self.pipe.engine(part)) for part in ("unet", "vae_decoder"))
        self.pipe.set_engine("unet", self.unet)
        self.pipe.set_engine("vae_decoder", self.decoder)

    def open(self) -> None:
        """Let everything through."""
        self.unet.let(10_000)
        self.decoder.let(10_000)


@pytest.fixture
def gated() -> Iterator[Gated]:
    gates = Gated()
    yield gates
    gates.open()  # no thread of a failed test waits on
