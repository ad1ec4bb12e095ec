"""Graphs and tokenizers that mean harm, and a child that lies, end in a typed error; the next bundle is drawn."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx, which writes the graphs, is not installed (extra test)")

import onnx

import edgediff
from edgediff import BundleError, DeadlineError, EdgediffError, EngineError, Limits, MemoryLimitError, Pipeline
from edgediff.engines.isolation import running

from . import hostile
from .hostile import Put, put
from .test_isolation import CALL, gone, kill, process

pytestmark = pytest.mark.slow  # some forty children, a second each
SMALL = Limits(memory=1 << 30, seconds=60)
SAMPLE: dict[str, Any] = {
    "sample": np.ones((1, 4, 8, 8), np.float32),
    "timestep": np.zeros(1, np.float32),
    "encoder_hidden_states": np.zeros((1, 77, 32), np.float32),
}


@pytest.fixture
def hostile_unet(tiny_bundle: Path, tmp_path: Path) -> Put:
    return lambda model: put(tiny_bundle, tmp_path / "hostile", "unet", model.SerializeToString())


def still_runs(pipe: Pipeline) -> None:
    """The parts that mean no harm go on, in a fresh child if need be."""
    latents = np.zeros((1, 4, 8, 8), np.float32)
    assert pipe.engine("vae_decoder")(latent_sample=latents)["sample"].shape == (1, 3, 32, 32)


def test_an_endless_loop_is_ended(hostile_unet: Put) -> None:
    with edgediff.load(hostile_unet(hostile.endless()), isolated=Limits(seconds=1)) as pipe:
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(DeadlineError, match="unet was not done after 1 s"):
                pipe("a cat", **CALL)
        assert time.monotonic() - began < 30
        still_runs(pipe)


def test_closing_ends_a_call(hostile_unet: Put) -> None:
    pipe = edgediff.load(hostile_unet(hostile.endless()), isolated=Limits(seconds=None))
    errors: list[str] = []

    def call() -> None:
        with pytest.raises(EngineError) as error:
            pipe.engine("unet")(**SAMPLE)
        errors.append(str(error.value))

    thread = threading.Thread(target=call)
    pipe.engine("unet")
    thread.start()
    time.sleep(0.3)
    child = process(pipe)
    pipe.close()
    thread.join(10)
    assert errors == ["unet: the pipeline was closed"]
    assert gone(child)


def test_a_child_killed_in_a_call(hostile_unet: Put) -> None:
    with edgediff.load(hostile_unet(hostile.endless()), isolated=Limits(seconds=None)) as pipe:
        pipe.engine("unet")
        threading.Timer(0.3, lambda: pipe._isolation._child._running.kill()).start()  # type: ignore[union-attr]
        with pytest.raises(EngineError, match=r"unet: the child that ran it was killed by SIGKILL$"):
            pipe.engine("unet")(**SAMPLE)
        still_runs(pipe)


def test_an_interrupted_call_leaves_no_answer_behind(hostile_unet: Put) -> None:
    """Its answer would be taken for the next call's."""
    with edgediff.load(hostile_unet(hostile.endless()), isolated=Limits(seconds=None)) as pipe:
        pipe.engine("unet")
        interrupted = threading.Event()

        def interrupt() -> None:
            time.sleep(0.3)
            while not interrupted.is_set():
                os.kill(os.getpid(), signal.SIGINT)
                interrupted.wait(10)  # one that comes just before Python begins to wait is seen at the next

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                pipe.engine("unet")(**SAMPLE)
        finally:
            interrupted.set()
            thread.join()
            signal.signal(signal.SIGINT, before)
        still_runs(pipe)


def test_memory_ends_at_its_limit(hostile_unet: Put) -> None:
    with edgediff.load(hostile_unet(hostile.huge()), isolated=SMALL) as pipe:
        with pytest.raises(MemoryLimitError, match=r"unet.*limit of an isolated child is 1\.07 GB"):
            pipe("a cat", **CALL)
        still_runs(pipe)


def test_an_answer_has_a_limit_too(hostile_unet: Put) -> None:
    with edgediff.load(hostile_unet(hostile.other_shape(1, 1, 550, 550)), isolated=SMALL) as pipe:
        with pytest.raises(MemoryLimitError, match=r"unet: it gave 0\.31 GB in one call, and may give 0\.27"):
            pipe.engine("unet")(**SAMPLE)
        still_runs(pipe)


def test_an_answer_of_another_shape_arrives(hostile_unet: Put) -> None:
    """Whether a shape is right is told where it is used, as without isolation; the arena grows."""
    root = hostile_unet(hostile.other_shape(1, 1, 200, 200))
    with edgediff.load(root, isolated=SMALL) as pipe:
        found = pipe.engine("unet")(**SAMPLE)["out_sample"]
    assert found.shape == (1, 4, 1600, 1600)
    assert (found == 1).all()


@pytest.mark.parametrize("make", [hostile.custom, hostile.outside, lambda: onnx.ModelProto()], ids=["op", "data", "no"])
def test_what_cannot_be_opened(hostile_unet: Put, make: Any) -> None:
    """The error is that of a pipeline without isolation."""
    root = hostile_unet(make())
    texts = []
    for isolated in (False, SMALL):
        refused = pytest.raises((BundleError, EngineError), match="unet")
        with edgediff.load(root, isolated=isolated) as pipe, refused as error:
            pipe.engine("unet")
        texts.append(str(error.value))
    assert texts[0] == texts[1]


def test_texts_in_place_of_numbers(hostile_unet: Put) -> None:
    with edgediff.load(hostile_unet(hostile.texts()), isolated=SMALL) as pipe:
        with pytest.raises(BundleError, match=r"unet\.onnx has output out_sample of type string"):
            pipe.engine("unet")(**SAMPLE)
        still_runs(pipe)


def tokenizer(tiny_bundle: Path, root: Path, **changes: Any) -> Path:
    data = json.loads((tiny_bundle / "tokenizer.json").read_text(encoding="utf-8"))
    return put(tiny_bundle, root, "tokenizer", json.dumps({**data, **changes}).encode())


TENFOLD = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"}


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Sequence", "normalizers": [TENFOLD] * 9},
        {"type": "Replace", "pattern": {"String": ""}, "content": "b"},
    ],
    ids=["grows", "panics"],
)
def test_a_tokenizer_that_means_harm(tiny_bundle: Path, tmp_path: Path, normalizer: Any) -> None:
    root = tokenizer(tiny_bundle, tmp_path / "hostile", normalizer=normalizer)
    with edgediff.load(root, isolated=SMALL) as pipe:
        with pytest.raises(EdgediffError):
            pipe("a cat", **CALL)
        still_runs(pipe)


# Children that bind themselves, and then lie.
LIES = {
    "an array outside": "send(self._connection, {'arrays': [{'name': 'sample', 'dtype': 'float32', 'shape': [1 << 30],"
    " 'at': 0}]})",
    "another name": "send(self._connection, {'arrays': [{'name': 'x', 'dtype': 'float32', 'shape': [1], 'at': 0}]})",
    "nothing": "send(self._connection, {})",
    "a length without end": "self._connection.sendall(b'\\xff' * 8)",
    "no JSON": "self._connection.sendall((3).to_bytes(8, 'big') + b'[[[')",
    "room without end": "send(self._connection, {'needs': 10**30})",
    "room below 0": "send(self._connection, {'needs': -1})",
    "an error of no type": "send(self._connection, {'error': ['x'], 'text': {'a': 1}})",
    "an error that a terminal obeys": "send(self._connection, {'error': 'SystemExit', 'text': '\\x1b[2J' * 10**5})",
    "its end": "import os; os._exit(3)",
    "a crash": "import os; os.abort()",
    "its own memory": "import ctypes; ctypes.string_at(0)",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=list(LIES))
def test_a_child_that_lies(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    program = running.PROGRAM.partition("from edgediff")[0] + (
        "import ctypes\nfrom edgediff.engines.isolation import worker\n"
        "from edgediff.engines.isolation.worker import *\n"
        f"def lie(self, name, arrays):\n    {lie}\nworker.Worker._answer = lie\n"
        "worker.main(int(sys.argv[2]), int(sys.argv[3]))"
    )
    with edgediff.load(tiny_bundle, isolated=SMALL) as pipe:
        engine = pipe.engine("vae_encoder")
        monkeypatch.setattr(running, "PROGRAM", program)
        kill(pipe)
        with pytest.raises((EngineError, MemoryLimitError)) as error:
            pipe.engine("vae_decoder")(latent_sample=np.zeros((1, 4, 8, 8), np.float32))
        assert "vae_decoder" in str(error.value) or "x1b" in str(error.value) or "'a': 1" in str(error.value)
        assert str(error.value).isprintable()
        monkeypatch.undo()
        kill(pipe)
        still_runs(pipe)
        assert engine(sample=np.zeros((1, 3, 32, 32), np.float32))["latent_mean"].shape == (1, 4, 8, 8)


TOKENS = {
    "an id that is none": "np.array([[-1, 0]])",
    "a place beyond": "np.array([[1, 10**6]])",
    "another shape": "np.zeros(4, np.int64)",
    "fractions": "np.zeros((1, 2))",
    "far too many": "np.zeros((10**6, 2), np.int64)",
}


@pytest.mark.parametrize("answer", TOKENS.values(), ids=list(TOKENS))
def test_tokens_that_are_none(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    program = running.PROGRAM.partition("from edgediff")[0] + (
        "import numpy as np\nfrom edgediff.engines.isolation import worker\n"
        f"worker.Worker._tokens = lambda self, message: self._answer('tokenizer', {{'tokens': {answer}}})\n"
        "worker.main(int(sys.argv[2]), int(sys.argv[3]))"
    )
    monkeypatch.setattr(running, "PROGRAM", program)
    with edgediff.load(tiny_bundle, isolated=SMALL) as pipe, pytest.raises(BundleError, match="tokenizer: it"):
        pipe("a cat", **CALL)
