"""Child processes run our code, not what lies in the folder where they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgediff import python_child

ROOT = Path(__file__).parents[1]


def run(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_the_trap_works(trap: Path) -> None:
    assert run([sys.executable, "-m", "edgediff", "samplers"], dict(os.environ)).returncode == 66
    assert trap.read_text()


@pytest.mark.parametrize("path", [None, "", os.pathsep, ".", f"./{os.pathsep}", "../model", f"{ROOT}{os.pathsep}"])
def test_nothing_is_taken_from_the_current_folder(
    trap: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    found = run(python_child.command("edgediff", "samplers"), python_child.environment())
    assert found.returncode == 0, found.stderr
    assert "euler_a" in found.stdout
    assert not trap.exists()


def test_without_the_option_of_newer_pythons(trap: Path) -> None:
    """As Python 3.10 runs it, which has neither -P nor PYTHONSAFEPATH."""
    command = [word for word in python_child.command("edgediff", "samplers") if word != "-P"]
    env = {name: value for name, value in python_child.environment().items() if name != "PYTHONSAFEPATH"}
    found = run(command, env)
    assert found.returncode == 0, found.stderr
    assert not trap.exists()


def test_absolute_folders_and_the_rest_stay() -> None:
    env = python_child.environment({"PYTHONPATH": os.pathsep.join(["", "src", str(ROOT), "."]), "WORD": "kept"})
    assert env == {"PYTHONPATH": str(ROOT), "WORD": "kept", "PYTHONSAFEPATH": "1"}
    assert python_child.environment({"PYTHONPATH": "src"}) == {"PYTHONSAFEPATH": "1"}


def test_the_module_sees_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text("import sys; print(__name__, sys.argv[1:])", encoding="utf-8")
    env = python_child.environment({**os.environ, "PYTHONPATH": str(tmp_path)})
    assert run(python_child.command("told", "-c", "a b", ""), env).stdout == "__main__ ['-c', 'a b', '']\n"


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("command", ["export", "adopt"])
def test_an_installed_command_in_a_strangers_folder(trap: Path, tmp_path: Path, command: str) -> None:
    """The command itself searches its own folder, not the current one; its children must not either."""
    pytest.importorskip("edgediff_export", reason="the export stage is not installed")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "edgediff"  # as an installer writes it
    script.write_text("import sys\nfrom edgediff.cli.main import main\nsys.exit(main())\n", encoding="utf-8")
    found = run([sys.executable, str(script), command, ".", "../out"], dict(os.environ))
    assert found.returncode == 2, found
    assert found.stderr.startswith("edgediff: no ")
    assert not trap.exists()
