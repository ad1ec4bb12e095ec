"""ONNX Runtime as a backend: what it opens and refuses, its providers, and what it leaves of the process as it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.device.host import HostDevice
from edgediff.engines import providers
from edgediff.engines.base import EngineOptions
from edgediff.engines.onnxruntime import BACKEND
from edgediff.engines.providers import CPU, CUDA, on_stream, preload, session_providers, silence, streams
from edgediff.engines.session import INSTALL, OnnxRuntimeEngine, import_onnxruntime
from edgediff.errors import BundleError, EngineError


@pytest.fixture(scope="module")
def bundle() -> edgediff.Bundle:
    return edgediff.load().bundle


def test_what_it_says_before_it_opens(bundle: edgediff.Bundle) -> None:
    assert BACKEND.why_not(bundle, "unet", EngineOptions(), None) == ()
    assert BACKEND.describe(bundle, "unet", EngineOptions(), None) == import_onnxruntime().__version__
    if CUDA not in import_onnxruntime().get_available_providers():
        reasons = BACKEND.why_not(bundle, "unet", EngineOptions(), 0)
        assert any(f"has no {CUDA}; install onnxruntime-gpu in place of onnxruntime" in reason for reason in reasons)


def test_not_installed(bundle: edgediff.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert BACKEND.why_not(bundle, "unet", EngineOptions(), None) == (INSTALL,)
    with pytest.raises(EngineError, match=r"unet cannot run here: unet\.onnx: no engine is installed"):
        BACKEND.open(bundle, "unet", EngineOptions(), None)


def test_installed_and_broken(tmp_path: Path) -> None:
    """A library that is missing behind onnxruntime is the reason, and the rest of the page is there."""
    (tmp_path / "onnxruntime").mkdir()
    program = tmp_path / "onnxruntime" / "__init__.py"
    program.write_text("raise ImportError('libquux.so.7: cannot open shared object file')\n", encoding="utf-8")
    root = Path(edgediff.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "edgediff", "info"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])},
        check=False,
    )
    assert "onnxruntime is installed and cannot be imported: libquux.so.7" in run.stdout
    assert "vae_decoder     -> sample float32" in run.stdout


def test_engines_by_device(bundle: edgediff.Bundle) -> None:
    host = BACKEND.open(bundle, "vae_decoder", EngineOptions(threads=1), None)
    stream: Any = BACKEND.open(bundle, "vae_decoder", EngineOptions(threads=1), HostDevice())
    beside = BACKEND.open(bundle, "vae_decoder", EngineOptions(providers=[CPU]), HostDevice())
    assert [hasattr(engine, "enqueue") for engine in (host, stream, beside)] == [False, True, False]
    assert (stream.capture, stream.warm_runs) == ("proven", 3)
    kept: Any = BACKEND.open(bundle, "vae_decoder", EngineOptions(cuda_graphs=False), HostDevice())
    assert kept.capture == "never"
    z = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32)
    for engine in (stream, beside):
        np.testing.assert_array_equal(engine(latent_sample=z)["sample"], host(latent_sample=z)["sample"])


def test_failures_name_the_part(bundle: edgediff.Bundle, tmp_path: Path) -> None:
    engine = BACKEND.open(bundle, "vae_decoder", EngineOptions(), None)
    with pytest.raises(EngineError, match=r"^vae_decoder failed on latent_sample float32\[1, 3, 8, 8\]: "):
        engine(latent_sample=np.zeros((1, 3, 8, 8), np.float32))
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"^unet: ONNX Runtime [0-9.]+ cannot open unet\.onnx: "):
        OnnxRuntimeEngine("unet", path, bundle.parts["unet"])
    unet = bundle.path("unet", bundle.parts["unet"].files[0])
    with pytest.raises(
        BundleError, match=r"unet: .* has inputs \['sample', .*\], the manifest says \['latent_sample'\]"
    ):
        OnnxRuntimeEngine("unet", unet, bundle.parts["vae_decoder"])


def test_providers_that_are_not_there() -> None:
    ort = import_onnxruntime()
    with pytest.raises(EngineError, match=r"unet: ONNX Runtime .* has no MagicExecutionProvider; choose from .*CPU"):
        session_providers(ort, "unet", None, ["MagicExecutionProvider"])
    assert session_providers(ort, "unet", None, None) == [CPU]
    assert session_providers(ort, "unet", HostDevice(), None) == [CPU]
    assert session_providers(ort, "unet", None, [(CPU, {"arena": "1"})]) == [(CPU, {"arena": "1"})]


def test_who_works_on_the_devices_stream() -> None:
    device = HostDevice()
    assert not streams(None, None)
    assert streams(device, None)
    assert streams(device, [(CUDA, {})])
    assert not streams(device, [CPU])


def test_providers_run_on_the_devices_stream() -> None:
    device: Any = HostDevice()
    asked: list[Any] = [
        "TensorrtExecutionProvider",
        ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "3"}),
        "X",
    ]
    assert [on_stream(one, device) for one in asked] == asked
    device.ordinal, device.stream = 1, 2**47
    stream = {"device_id": "1", "has_user_compute_stream": "1", "user_compute_stream": str(2**47)}
    assert [on_stream(one, device) for one in asked] == [
        ("TensorrtExecutionProvider", stream),
        ("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0", **stream}),
        "X",
    ]
    assert [on_stream(one, None) for one in asked] == asked


class Library:
    """ONNX Runtime's module, as far as the whole process's state goes."""

    def __init__(self) -> None:
        self.level = 2
        self.printed: list[bool] = []

    def set_default_logger_severity(self, level: int) -> None:
        self.level = level

    def preload_dlls(self) -> None:
        self.printed.append("print" not in self.__dict__)


def test_silence_lasts_until_the_last_is_done() -> None:
    """Two sessions open at once: the first to be done must not let the other's provider speak."""
    ort = Library()
    inside, leave = threading.Event(), threading.Event()

    def open_slowly() -> None:
        with silence(ort):
            inside.set()
            assert leave.wait(10)

    thread = threading.Thread(target=open_slowly)
    thread.start()
    assert inside.wait(10)
    with silence(ort):
        assert ort.level == 4
    assert ort.level == 4
    leave.set()
    thread.join()
    assert ort.level == 2
    with pytest.raises(ZeroDivisionError), silence(ort):
        _ = 1 / 0
    assert ort.level == 2


def test_preloading_says_nothing_and_leaves_print_as_it_was() -> None:
    ort = Library()
    threads = [threading.Thread(target=preload, args=(ort,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ort.printed == [False] * 8
    assert "print" not in ort.__dict__


def test_the_real_library_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    ort = import_onnxruntime()
    preload(ort)
    with silence(ort):
        pass
    assert "print" not in vars(ort)
    assert providers._opening == 0
    assert capfd.readouterr() == ("", "")


def test_telemetry_is_off_and_the_environment_is_as_it_was(tmp_path: Path) -> None:
    program = """
import os
from edgediff.engines.session import TELEMETRY, import_onnxruntime
before = dict(os.environ)
import_onnxruntime()
assert dict(os.environ) == before and TELEMETRY not in before
"""
    home = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | {
        "HOME": str(tmp_path)
    }
    done = subprocess.run([sys.executable, "-c", program], env=home, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
