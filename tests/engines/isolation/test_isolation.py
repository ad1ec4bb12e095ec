"""A pipeline whose libraries run in a child draws the same bytes, and outlives its child; the child not its parent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff import ArgumentError, EngineError, Limits, Pipeline
from edgediff.cli.main import main
from edgediff.engines.isolation import landlock, limits, running, seccomp
from edgediff.engines.isolation.opened import IsolatedEngine, IsolatedTokenizer
from edgediff.prompts.tokenizer import Tokenizer

CALL: dict[str, Any] = {"num_inference_steps": 3, "seed": 7, "output_type": "np"}


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> Pipeline:
    return edgediff.load(tiny_bundle)


@pytest.fixture(scope="module")
def isolated(tiny_bundle: Path) -> Any:
    with edgediff.load(tiny_bundle, isolated=True) as pipe:
        yield pipe


def process(pipe: Pipeline) -> int:
    """The child's number."""
    assert pipe._isolation is not None
    run = pipe._isolation._child._running
    assert run is not None
    return run._process.pid


def kill(pipe: Pipeline) -> None:
    """End the child, if there still is one. It has ended when all its threads have, which /proc does not tell."""
    assert pipe._isolation is not None
    run = pipe._isolation._child._running
    if run is not None:
        run.kill()
        run._process.wait(20)


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process ends; one that nobody has waited for has ended, too."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z"):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": "a red apple"},
        {"prompt": ["a (red:1.3) apple", "x " * 90], "negative_prompt": "a fish, " * 40, "num_images_per_prompt": 2},
        {"prompt": "a cat", "sampler": "dpmpp_2s_a", "width": 48, "guidance_rescale": 0.5, "clip_skip": 1},
    ],
    ids=["one", "batch of long texts", "other shapes"],
)
def test_pictures_are_equal_to_the_byte(plain: Pipeline, isolated: Pipeline, arguments: dict[str, Any]) -> None:
    for one, other in zip(plain.stream(**arguments, **CALL), isolated.stream(**arguments, **CALL), strict=True):
        assert one.latents.tobytes() == other.latents.tobytes()
        assert one.preview()[0].tobytes() == other.preview()[0].tobytes()
    assert one.decode()[0].tobytes() == other.decode()[0].tobytes()
    assert one.result().array.tobytes() == other.result().array.tobytes()
    assert isinstance(isolated.engine("unet"), IsolatedEngine)


def test_the_built_in_model_draws_the_same(emoji: Pipeline) -> None:
    with edgediff.load(isolated=True) as pipe:
        ours, theirs = (p("a red apple on a blue background", **CALL).array for p in (emoji, pipe))
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_every_part_is_equal_to_the_bit(plain: Pipeline, isolated: Pipeline, part: str) -> None:
    rng = np.random.default_rng(0)
    named = {"batch": 2, "extra": 1, "latent_height": 8, "latent_width": 12, "height": 32, "width": 48, "tokens": 77}
    inputs: dict[str, Any] = {}
    for tensor in plain.bundle.parts[part].inputs:
        shape = [named[side] if isinstance(side, str) else side for side in tensor.shape]
        whole = tensor.dtype == "int64"
        inputs[tensor.name] = rng.integers(0, 600, shape) if whole else rng.standard_normal(shape, np.float32)
    ours, theirs = plain.engine(part)(**inputs), isolated.engine(part)(**inputs)
    assert list(ours) == list(theirs)
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype
        assert values.tobytes() == theirs[name].tobytes()
        theirs[name][...] = 0  # it is nobody else's


def test_tokens_are_the_same(plain: Pipeline, isolated: Pipeline) -> None:
    (ours,), (theirs,) = plain._open_tokenizers(), isolated._open_tokenizers()
    assert type(ours) is Tokenizer
    assert isinstance(theirs, IsolatedTokenizer)
    for name in ("begin", "end", "comma", "max_length", "pad_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    for text in ("", "a red apple, 3 x", "ÄÖ ﷺ \0 🍎 " * 50, "<|endoftext|>", "x" * 10_000):
        assert ours.tokens(text) == theirs.tokens(text)


def test_one_part_at_a_time(plain: Pipeline, tiny_bundle: Path) -> None:
    with edgediff.load(tiny_bundle, isolated=True, release_parts=True) as pipe:
        for _ in range(2):
            assert pipe("a cat", **CALL).array.tobytes() == plain("a cat", **CALL).array.tobytes()


def test_another_exporters_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx, which writes the graphs, is not installed (extra test)")
    from ...support.foreign import make_foreign

    folder = make_foreign(tiny_bundle, tmp_path / "foreign")
    with edgediff.load(folder, isolated=True) as pipe:
        assert pipe("a cat", **CALL).array.tobytes() == edgediff.load(folder)("a cat", **CALL).array.tobytes()


def test_errors_are_the_same(plain: Pipeline, isolated: Pipeline) -> None:
    texts = []
    for pipe in (plain, isolated):
        with pytest.raises(EngineError, match="vae_decoder failed on") as error:
            pipe.engine("vae_decoder")(latent_sample=np.zeros((1, 5, 8, 8), np.float32))
        texts.append((type(error.value), str(error.value)))
    assert texts[0] == texts[1]


def test_threads_do_not_disturb_each_other(plain: Pipeline, isolated: Pipeline) -> None:
    def draw(pipe: Pipeline, seed: int) -> bytes:
        return pipe(f"a cat {seed}", **{**CALL, "seed": seed}).array.tobytes()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: draw(isolated, seed), range(16)))
    assert found == [draw(plain, seed) for seed in range(16)]


def test_the_child_outlives_the_thread_that_needed_it(tiny_bundle: Path) -> None:
    """The kernel ends a child with the thread that started it."""
    with edgediff.load(tiny_bundle, isolated=True) as pipe:
        thread = threading.Thread(target=pipe.warm)
        thread.start()
        thread.join()
        child = process(pipe)
        time.sleep(0.2)
        pipe("a cat", **CALL)
        assert process(pipe) == child
    assert gone(child)


def test_a_killed_child_is_followed_by_another(tiny_bundle: Path, plain: Pipeline) -> None:
    with edgediff.load(tiny_bundle, isolated=True) as pipe:
        first = pipe("a cat", **CALL).array.tobytes()
        child = process(pipe)
        kill(pipe)
        assert pipe("a cat", **CALL).array.tobytes() == first == plain("a cat", **CALL).array.tobytes()
        assert process(pipe) != child
        steps = pipe.stream("a cat", **CALL)
        next(steps)
        kill(pipe)
        assert list(steps)[-1].result().array.tobytes() == first  # in the middle of a run


def test_a_file_that_changes_is_noticed_by_the_next_child(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    root = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with edgediff.load(root, isolated=True) as pipe:
        pipe("a cat", **CALL)
        data = bytearray((root / "unet.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (root / "unet.onnx").write_bytes(data)
        kill(pipe)
        with pytest.raises(edgediff.BundleError, match=r"unet\.onnx is damaged"):
            pipe("a cat", **CALL)


def test_close_ends_the_child(tiny_bundle: Path) -> None:
    pipe = edgediff.load(tiny_bundle, isolated=True).warm()
    child, engine, tokenizer = process(pipe), pipe.engine("vae_decoder"), pipe._open_tokenizers()[0]
    pipe.close()
    pipe.close()
    assert gone(child, 0.1)
    with pytest.raises(EngineError, match="closed"):
        engine(latent_sample=np.zeros((1, 4, 8, 8), np.float32))
    with pytest.raises(EngineError, match="closed"):
        tokenizer.tokens("a cat")


def test_a_pipeline_that_is_forgotten_ends_its_child(tiny_bundle: Path) -> None:
    import gc

    pipe = edgediff.load(tiny_bundle, isolated=True).warm()
    child = process(pipe)
    del pipe
    gc.collect()
    assert gone(child, 1.0)


PARENT = """
import os, sys, threading
import edgediff
pipe = edgediff.load(sys.argv[1], isolated=True).warm()
print(pipe._isolation._child._running._process.pid, flush=True)
how = sys.argv[2]
if how == "wait": threading.Event().wait()
if how == "return": sys.exit(0)
if how == "fork":
    call = dict(num_inference_steps=2, seed=1, output_type="np")
    ours = pipe("a cat", **call).array.tobytes()
    if (pid := os.fork()) == 0:
        os._exit(0 if pipe("a cat", **call).array.tobytes() == ours else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code, pipe("a cat", **call).array.tobytes() == ours, flush=True)
"""


def parent(bundle: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PARENT, str(bundle), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["kill", "return"])
def test_the_child_ends_with_its_parent(tiny_bundle: Path, how: str) -> None:
    with parent(tiny_bundle, {"kill": "wait"}.get(how, how)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        child = int(process.stdout.readline())
        if how == "kill":
            process.kill()
        assert process.wait(60) == (-signal.SIGKILL if how == "kill" else 0)
        assert gone(child)
        assert process.stderr.read() == ""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python warns of forks of a process with threads")
def test_a_forked_process_has_a_child_of_its_own(tiny_bundle: Path) -> None:
    with parent(tiny_bundle, "fork") as process:
        out, err = process.communicate(timeout=120)
        assert out.split()[1:] == ["0", "True"], err


def test_the_child_sees_nothing_of_the_callers(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No secrets in its environment, no descriptors, and no module of the current folder."""
    monkeypatch.setenv("API_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("json", "numpy", "onnxruntime", "edgediff", "sitecustomize", "signal"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "file").open("w") as file, edgediff.load(tiny_bundle, isolated=True) as pipe:
        os.set_inheritable(file.fileno(), True)
        pipe.warm()
        proc = Path(f"/proc/{process(pipe)}")
        assert b"secret" not in (proc / "environ").read_bytes()
        kinds = sorted(os.readlink(link).partition(":")[0] for link in (proc / "fd").iterdir())
        assert kinds == ["/dev/null", "/dev/null", "/memfd", "pipe", "socket"]
        assert os.readlink(proc / "cwd") == "/"
        status = (proc / "status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert ("Seccomp:\t2" in status) == seccomp.available()
    assert not (tmp_path / "ran").exists()


def test_what_holds_is_told(isolated: Pipeline, plain: Pipeline, capsys: Any) -> None:
    assert plain.isolation is None
    assert isolated.isolation is not None
    assert isolated.isolation.seconds == limits.SECONDS
    assert isolated.isolation.memory > 1 << 30
    assert main(["info", str(isolated.bundle.root)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("isolated"))
    assert "600 s a call" in line


def test_what_a_system_lacks_is_warned_of(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.warns(RuntimeWarning, match="reading other files") as caught:
        pipe = edgediff.load(tiny_bundle, isolated=True)
    assert caught[0].filename == __file__
    assert pipe.isolation is not None
    assert any("Landlock" in what for what in pipe.isolation.lacks)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EngineError, match="on Linux alone, and this is darwin"):
        edgediff.load(tiny_bundle, isolated=True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EngineError, match="frozen"):
        edgediff.load(tiny_bundle, isolated=True)


def test_a_child_that_cannot_start(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = edgediff.load(tiny_bundle, isolated=True)
    for program, words in (("raise SystemExit('no luck')", "no luck"), ("import missing", "No module named 'missing'")):
        monkeypatch.setattr(running, "PROGRAM", program)
        with pytest.raises(EngineError, match=words):
            pipe("a cat", **CALL)
    monkeypatch.setattr(sys, "executable", "/missing/python")
    with pytest.raises(EngineError, match="cannot be started"):
        pipe("a cat", **CALL)
    monkeypatch.undo()
    pipe("a cat", **CALL)
    pipe.close()


def test_an_interrupted_start_leaves_no_answer_behind(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child says of its start would be taken for its first answer, and each answer for the next one."""
    hear = running.Running.hear

    def interrupted(self: Any, seconds: float | None) -> Any:
        monkeypatch.setattr(running.Running, "hear", hear)
        raise KeyboardInterrupt

    monkeypatch.setattr(running.Running, "hear", interrupted)
    with edgediff.load(tiny_bundle, isolated=True) as pipe:
        with pytest.raises(KeyboardInterrupt):
            pipe("a cat", **CALL)
        pipe("a cat", **CALL)


def test_close_ends_a_child_that_starts(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = edgediff.load(tiny_bundle, isolated=True)
    starting, go_on, errors = threading.Event(), threading.Event(), []
    make = running.Running.__init__

    def slow(self: Any) -> None:
        starting.set()
        go_on.wait(20)
        make(self)
        monkeypatch.setattr(self, "hear", lambda seconds: pytest.fail("it was waited for"))

    monkeypatch.setattr(running.Running, "__init__", slow)

    def call() -> None:
        with pytest.raises(EngineError) as error:
            pipe("a cat", **CALL)
        errors.append(str(error.value))

    threads = [threading.Thread(target=call), threading.Thread(target=pipe.close)]
    threads[0].start()
    starting.wait(20)
    threads[1].start()
    time.sleep(0.2)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert errors == ["tokenizer: the pipeline was closed"]


def test_a_python_that_was_built_with_an_old_c_library(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with edgediff.load(tiny_bundle, isolated=True) as pipe:
        pipe("a cat", **CALL)


def test_links_in_a_circle_are_files_that_no_child_reads(tiny_bundle: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (root / "vae_encoder.onnx").unlink()
    (root / "vae_encoder.onnx").symlink_to("vae_encoder.onnx")
    with edgediff.load(root, isolated=True) as pipe:
        pipe("a cat", **CALL)


SHORT = """
import os, resource, sys
import edgediff
from edgediff.engines.isolation import channel, running
pipe = edgediff.load(sys.argv[1], isolated=True)
if sys.argv[2] == "files":
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    try:
        while True: os.open(os.devnull, 0)
    except OSError: pass
elif sys.argv[2] == "size": resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
elif sys.argv[2] == "child":  # has no room for the second arena
    pipe.warm()
    resource.prlimit(pipe._isolation._child._running._process.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
    channel.SMALLEST = 2 << 20
    pipe._isolation._child._running._arena = None
try:
    pipe("a cat", num_inference_steps=1)
except edgediff.EdgediffError as error:
    print(type(error).__name__, error)
pipe.close()
"""


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ("files", r"EngineError an isolated child cannot be started: .*Too many open files"),
        ("size", r"EngineError tokenizer: no memory can be shared with its child \(File too large\)"),
        ("child", r"MemoryLimitError tokenizer: shared memory: .*Cannot allocate memory; the limit"),
    ],
)
def test_what_the_system_refuses_is_said(tiny_bundle: Path, lacking: str, words: str) -> None:
    command = [sys.executable, "-c", SHORT, str(tiny_bundle), lacking]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert re.match(words, run.stdout), run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"isolated": "yes"}, "isolated is 'yes'"),
        ({"isolated": 1}, "isolated is 1"),
        ({"isolated": True, "device": "cuda"}, "device is 'cuda'"),
        ({"isolated": Limits(), "providers": ["CPUExecutionProvider"]}, "providers is"),
    ],
)
def test_what_cannot_be_isolated(tiny_bundle: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        edgediff.load(tiny_bundle, **arguments)


def test_commands(tiny_bundle: Path, tmp_path: Path) -> None:
    pictures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for more in ([], ["--isolated"]):
            path = tmp_path / f"{len(more)}.png"
            command = ["generate", "a cat", "-o", str(path), "--model", str(tiny_bundle), "--steps", "2", "--seed", "7"]
            assert main([*command, *more]) == 0
            pictures.append(path.read_bytes())
        assert main(["verify", str(tiny_bundle), "--isolated"]) == 0
    assert pictures[0] == pictures[1]


def test_a_hubs_cache(half_bundle: Path, tmp_path: Path) -> None:
    """Its files are links out of the folder, and weights are found beside the graph's name."""
    hub = tmp_path / "models--me--half"
    revision = hub / "snapshots" / "0123abc"
    revision.mkdir(parents=True)
    (hub / "blobs").mkdir()
    for k, path in enumerate(sorted(half_bundle.iterdir())):
        (hub / "blobs" / f"{k}").write_bytes(path.read_bytes())
        (revision / path.name).symlink_to(f"../../blobs/{k}")
    expected = edgediff.load(half_bundle)("a cat", **CALL).images
    with edgediff.load(revision, isolated=True) as pipe:
        assert np.array_equal(pipe("a cat", **CALL).images, expected)
