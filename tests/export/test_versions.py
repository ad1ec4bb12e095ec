"""The versions of the libraries that the export stage runs with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediff import EngineError
from edgediff_export.versions import RANGES, check_versions, requirement

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a library appear in another version: what pip writes of it comes first on the path."""

    def install(name: str, version: str) -> None:
        for earlier in (tmp_path / "site").glob(f"{name}-*"):
            shutil.rmtree(earlier)
        folder = tmp_path / "site" / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    return install


def test_what_is_installed_here_is_known() -> None:
    check_versions()


@pytest.mark.parametrize(
    ("name", "version"),
    [("diffusers", "0.34.0"), ("diffusers", "0.43.0"), ("transformers", "4.49.0"), ("transformers", "6.0.0.dev0")],
)
def test_another_version_is_refused_before_any_work(
    installed: Callable[..., None], tmp_path: Path, name: str, version: str
) -> None:
    from edgediff_export.convert import export

    installed("transformers", "4.57.6")
    installed("diffusers", "0.42.1")
    installed(name, version)
    asked = requirement(name, *RANGES[name])
    with pytest.raises(EngineError) as caught:
        export(tmp_path / "nowhere", tmp_path / "out")
    assert str(caught.value) == (
        f"{name} is {version}, which the export stage does not run with; run: pip install '{asked}'"
    )


def test_transformers_5_asks_for_a_newer_diffusers(installed: Callable[..., None]) -> None:
    installed("transformers", "5.0.0")
    installed("diffusers", "0.35.2")
    with pytest.raises(EngineError, match=r"0\.35\.2 beside transformers 5\.0\.0, .*'diffusers>=0\.36,<0\.43'"):
        check_versions()


@pytest.mark.parametrize(
    ("name", "version"),
    [("diffusers", "0.35.0"), ("diffusers", "0.42.1"), ("transformers", "4.50.0")],
)
def test_the_ends_of_the_ranges_are_taken(installed: Callable[..., None], name: str, version: str) -> None:
    installed("transformers", "4.57.6")
    installed(name, version)
    check_versions()


def test_the_command_refuses_before_it_loads_them(installed: Callable[..., None], tmp_path: Path) -> None:
    installed("diffusers", "0.30.0")
    installed("transformers", "4.40.0")
    (tmp_path / "site" / "diffusers.py").write_text("raise SystemExit('loaded')\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "edgediff_export", "nowhere", str(tmp_path / "out")]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    asked = [f"'{requirement(name, *RANGES[name])}'" for name in ("diffusers", "transformers")]
    assert run.stderr == (
        "edgediff: diffusers is 0.30.0 and transformers is 4.40.0, which the export stage does not run with; "
        f"run: pip install {' '.join(asked)}\n"
    )


def test_the_package_asks_for_the_same() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["export"] == [requirement(name, *ends) for name, ends in RANGES.items()]
    pinned = dict(line.split("==") for line in extras["test"] if "==" in line and ";" not in line)
    assert pinned.keys() >= {"torch", "diffusers", "transformers"}
