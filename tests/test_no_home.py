"""Pictures on a CPU need no home and no name of a user; engine files say what they lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

import edgediff
from edgediff import EngineError
from edgediff.cache_folder import default_cache_folder
from edgediff.cli import main as cli

NOBODY = """
import edgediff, sys
from edgediff.cli import main as cli
image = edgediff.load({bundle!r})("a tiger", seed=7, num_inference_steps=2).images[0]
assert cli.main(["info", {bundle!r}]) == 0
assert cli.main(["generate", "a tiger", "--model", {bundle!r}, "-o", {out!r}, "--steps", "2", "--seed", "7"]) == 0
print(image.size, file=sys.stderr)
print(cli.main(["build", {bundle!r}]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root becomes another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_user_without_name_and_home(tiny_bundle: Path) -> None:
    """As containers with arbitrary users, and systemd's DynamicUser, have it."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is root's alone
        place = Path(folder)
        place.chmod(0o777)
        bundle = Path(shutil.copytree(tiny_bundle, place / "bundle"))
        code = NOBODY.format(bundle=str(bundle), out=str(place / "out.png"))
        user = ["setpriv", "--reuid", "12345", "--clear-groups", "--inh-caps=-all"]
        probe = subprocess.run(["env", "-i", *user, sys.executable, "-c", "import edgediff, numpy"], check=False)
        if probe.returncode:
            pytest.skip(f"another user cannot read {sysconfig.get_path('purelib')}")
        run = subprocess.run(
            ["env", "-i", *user, sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=place
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr.splitlines()[0] == "(32, 32)", run.stderr
        assert "engines    of" in run.stdout
        assert run.stderr.splitlines()[-1] == "2", run.stderr  # engine files need a folder, or a GPU: it says so
        assert (place / "out.png").is_file()


def test_no_home(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("EDGEDIFF_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(EngineError, match="this user has no home; name one by EDGEDIFF_CACHE, engine_cache= or"):
        default_cache_folder()
    assert edgediff.load(tiny_bundle)("a tiger", num_inference_steps=1).images
    assert cli.main(["info", str(tiny_bundle)]) == 0
    assert "yes" in capsys.readouterr().out
