"""The commands, in process; exit codes and messages. One test runs the installed entry point."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import edgediff
from edgediff.bundle.manifest import sha256
from edgediff.cli import generate, progress
from edgediff.cli import main as cli
from edgediff.cli.options import add_engine, amount_of, engine_arguments
from edgediff.generation.arguments import Arguments
from edgediff.generation.request import plan_for
from edgediff.sampling.samplers import SAMPLERS


def test_generate(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cat.png"
    arguments = ["--model", str(tiny_bundle), "--steps", "2", "--seed", "4", "--sampler", "euler", "-o", str(out)]
    assert cli.main(["generate", "a cat", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out} (seed 4)\n"
    assert captured.err == ""  # no bar: stderr is no terminal
    with Image.open(out) as image:
        assert image.size == (32, 32)
        assert "Sampler: Euler, " in image.text["parameters"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("512mb", 512 * 10**6),
        ("1.5 GiB", 3 << 29),
        ("2KB", 2000),
        ("1TB", 10**12),
        (" 3MiB ", 3 << 20),
    ],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert amount_of(text, "memory-limit") == size


def test_graphs_are_captured_unless_told() -> None:
    parser = argparse.ArgumentParser()
    add_engine(parser)
    told = [engine_arguments(parser.parse_args(words))["cuda_graphs"] for words in ([], ["--no-cuda-graphs"])]
    assert told == [True, False]


def test_batch(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cat.webp"
    model = ["--model", str(tiny_bundle)]
    assert cli.main(["generate", "a cat", *model, "--steps", "1", "--seed", "4", "--batch", "2", "-o", str(out)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat-0.webp", "cat-1.webp"]
    assert "(seed 5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "plmss"], "no sampler 'plmss'; choose from"),
        (["--spacing", "tight"], "no spacing 'tight'"),
        (["--steps", "0"], "num_inference_steps is 0"),
        (["--guidance-scale", "nan"], "guidance_scale is nan"),
        (["--size", "30x32"], "width is 30; it must be a multiple of 4"),
        (["--size", "big"], "size is 'big'; write it as WIDTHxHEIGHT"),
        (["--size", ""], "size is ''"),
        (["--memory-limit", "4"], "memory-limit is '4'; write it with its unit, for example 4GB"),
        (["--memory-limit", "9" * 5000 + "GB"], "write it with its unit"),
        (["--memory-limit", "0GB"], "memory_limit is 0"),
        (["--memory-limit", "50kB"], "takes at least"),
        (["--deadline", "nan"], "deadline is nan; it must be a positive number of seconds"),
        (["--deadline", "1e-9"], "the call was stopped at "),
        (["--size", "9" * 5000 + "x64"], "write it as WIDTHxHEIGHT"),
        (["--steps", "1.5"], "argument --steps: invalid int value: '1.5'; see edgediff generate --help"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--batch", "0"], "batch is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--device", "tpu"], "no device 'tpu'; choose from cpu"),
        (["--threads", "0"], "threads is 0"),
        (["--model", "nowhere"], "no bundle at nowhere"),
    ],
)
def test_bad_input(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", "a cat", "--model", str(tiny_bundle), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("edgediff: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("prompt", "said"), [([], "no prompt was given"), (["a\udcff"], "the prompt")])
def test_no_prompt(tiny_bundle: Path, capsys: pytest.CaptureFixture[str], prompt: list[str], said: str) -> None:
    assert cli.main(["generate", *prompt, "--model", str(tiny_bundle)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("output", ["/nowhere/a.png", "/proc/a.png", "a.gif"])
def test_bad_output_before_any_work(
    output: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "load", lambda *a, **k: pytest.fail("work started"))
    assert cli.main(["generate", "a cat", "--model", str(tiny_bundle), "-o", output]) == 2
    assert f"cannot write {output}" in capsys.readouterr().err


def test_damaged_bundle(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (root / "unet.onnx").write_bytes(b"short")
    out = tmp_path / "out.png"
    assert cli.main(["generate", "a cat", "--model", str(root), "-o", str(out)]) == 2
    assert "unet.onnx has 5 bytes" in capsys.readouterr().err
    assert not out.exists()
    assert cli.main(["verify", str(root)]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("ok  ") == 5
    assert "1 of 6 files of bundle 'tiny' are missing, damaged or unreadable" in captured.err
    assert cli.main(["info", str(root)]) == 2
    captured = capsys.readouterr()
    assert "PROBLEM: bundle 'tiny': unet: unet.onnx has 5 bytes" in captured.out
    assert "1 of 6 files of bundle 'tiny' cannot be used" in captured.err


def test_long_prompt_warns(one_chunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.png")
    assert cli.main(["generate", "cat " * 80, "--model", str(one_chunk), "--steps", "1", "-o", out]) == 0
    assert "edgediff: warning: the prompt is longer than the 75 tokens" in capsys.readouterr().err


def test_plan(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--model", str(tiny_bundle), "--sampler", "dpmpp_2m", "--steps", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("DPM++ 2M, leading spacing, epsilon")
    assert len(lines) == 3 + 4
    assert cli.main(["plan", "--model", str(tiny_bundle), "--steps", "0"]) == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_plan(sampler: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--sampler", sampler, "--steps", "8"]) == 0
    plan = plan_for(edgediff.load().bundle, Arguments(sampler=sampler, num_inference_steps=8))
    assert len(capsys.readouterr().out.splitlines()) == 3 + len(plan.rows)


def test_plan_options(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(*arguments: str) -> list[str]:
        assert cli.main(["plan", "--sampler", "ddim", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    assert [line.split()[1] for line in plan("--timesteps", "999,500.5,3")[3:]] == ["999", "500.5", "3"]
    assert len(plan("--sigmas", "14.6,3,0.5")) == 3 + 3
    assert plan("--spacing", "karras")[0].startswith("DDIM, karras spacing")
    rows = plan("--steps", "4", "--guidance-scale", "7,6,5,4", "--guidance-interval", "0.25,0.75")[3:]
    assert [float(row.split()[5]) == 0 for row in rows] == [True, False, False, True]
    assert float(plan("--steps", "4", "--eta", "1")[3].split()[7]) > 0
    assert "apg makes one output m" in plan("--guidance", "apg")[2]
    assert len(plan("--guidance", "cfg++", "--steps", "4")) == 3 + 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--guidance-scale", "a"], "guidance-scale is 'a'; it must be a number"),
        (["--guidance-interval", "0.5"], "guidance_interval is (0.5,); it must be (start, stop)"),
        (["--sampler", "eulerb"], "no sampler 'eulerb'; choose from ddim"),
        (["--sigmas", "157.5,157.45,1"], "are one noise level"),
        (["--guidance", "cfg++", "--sampler", "heun"], "needs a sampler without history"),
    ],
)
def test_bad_plans(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_generate_with_everything(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dotty", "a=b"):
        save_file({"emb_params": np.ones((1, 32), np.float32)}, tmp_path / f"{name}.safetensors")
    arguments = ["--sampler", "DPM++ 2M Karras", "--steps", "3", "--guidance-scale", "5,4,3", "--guidance", "apg"]
    arguments += ["--guidance-interval", "0,0.7", "--guidance-rescale", "0.5", "--dynamic-thresholding", "0.9"]
    arguments += ["--clip-skip", "1", "--rng", "torch-cuda", "--seed", "3", "--negative-prompt", "a [pear]"]
    arguments += [
        "--embedding",
        "dotty.safetensors",
        "--embedding",
        "a=b.safetensors",
        "--embedding",
        "x=a=b.safetensors",
    ]
    assert cli.main(["generate", "a (dotty:1.2) cat x", "--model", str(tiny_bundle), *arguments]) == 0
    assert capsys.readouterr().err == ""
    text = Image.open(tmp_path / "out.png").info["parameters"]
    for fact in (
        "DPM++ 2M, Schedule type: karras",
        "CFG scale: 5 4 3",
        "Guidance: apg",
        "RNG: torch-cuda",
        "TI hashes",
    ):
        assert fact in text
    assert "dotty: " in text
    assert ", x: " in text
    arguments = ["--plain-prompt", "--model", str(tiny_bundle), "--steps", "1"]
    assert cli.main(["generate", "a smile :) (", *arguments]) == 0
    assert cli.main(["generate", "a smile :)", "--model", str(tiny_bundle)]) == 2
    assert "at character 10 of the prompt closes nothing" in capsys.readouterr().err
    assert cli.main(["generate", "a", "--negative-prompt", "(x", "--model", str(tiny_bundle)]) == 2
    assert "of the negative prompt is never closed" in capsys.readouterr().err


def test_info_and_verify(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    assert text.count("runs on cpu by ONNX Runtime") == 4
    assert "unet            <- sample float32[batch, 4, latent_height, latent_width]" in text
    assert "from torch (relative)" in text
    assert cli.main(["verify", str(tiny_bundle), "--files"]) == 0
    assert capsys.readouterr().out.count("ok  ") == 6
    assert cli.main(["verify", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    assert text.count("ok  ") == 6 + 4 + 2  # files, parts, pictures
    assert "picture 2       PSNR" in text


def test_verify_of_a_part_that_computes_otherwise(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph that was changed together with its checksum: the files are right, the numbers are not."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra test)")
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    model = onnx.load(str(root / "unet.onnx"))
    bias = next(t for t in model.graph.initializer if t.name == "model.conv_out.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.05), bias.name))
    onnx.save(model, str(root / "unet.onnx"))
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    file = manifest["parts"]["unet"]["files"][0]
    file |= {"size": (root / "unet.onnx").stat().st_size, "sha256": sha256(root / "unet.onnx")}
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert cli.main(["verify", str(root), "--files"]) == 0
    assert cli.main(["verify", str(root)]) == 2
    captured = capsys.readouterr()
    assert "BAD unet            differs from torch by" in captured.out
    assert "checks of bundle 'tiny' against torch's golden tensors failed" in captured.err


class Screen:
    """A stderr that notes what is written, and may be a terminal."""

    encoding = "utf-8"

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.written = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_draws_on_a_terminal_only(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    steps = list(edgediff.load(tiny_bundle).stream("a cat", num_inference_steps=3, sampler="ddim"))
    assert list(progress.progress(steps)) == steps
    with progress.bar("unet") as draw:
        draw(0.25, "Tactics")
        time.sleep(0.2)  # a bar is not drawn more often
        draw(0.5, "Timing")
    if not terminal:
        assert screen.written == ""
        return
    assert "3/3" in screen.written
    assert "unet:  50%" in screen.written
    assert "Timing" in screen.written
    assert re.search(r"\r *\r$", screen.written)  # the bar of a build is gone when it is done


def test_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["samplers"]) == 0
    *lines, spacings = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines) == edgediff.SAMPLERS
    assert spacings == f"spacings: {', '.join(edgediff.SPACINGS)}"


def test_export_hands_over(diffusers: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "nowhere", str(tmp_path / "out")]) == 2
    assert capfd.readouterr().err.endswith("no diffusers model at nowhere: it has no model_index.json\n")


def test_export_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["export", "a", "b"]) == 2
    assert "extras export and cpu" in capsys.readouterr().err


def test_a_reader_that_leaves(tiny_bundle: Path) -> None:
    command = f'"{sys.executable}" -m edgediff info "{tiny_bundle}" | true'
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert run.stderr == ""


def test_stdout_that_is_full_or_closed(tiny_bundle: Path, tmp_path: Path) -> None:
    base = f'"{sys.executable}" -m edgediff generate cat --model "{tiny_bundle}" --steps 1 -o "{tmp_path}/a.png"'
    full = subprocess.run(["bash", "-c", f"{base} > /dev/full"], capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (2, "edgediff: [Errno 28] No space left on device\n")
    closed = subprocess.run(["bash", "-c", f"{base} >&-"], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_installed_command(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "edgediff"
    run = subprocess.run(
        [command, "generate", "a red apple on a blue background", "--seed", "1", "-o", "apple.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "apple.png (seed 1)\n"
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (64, 64)
    assert subprocess.run([command, "frobnicate"], capture_output=True, check=False).returncode == 2


def test_verify_of_a_call_from_another_time(damaged: Callable[[], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What a newer exporter stored is a finding, not the end of the proof."""
    root = damaged()
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    manifest["golden"]["pictures"][0]["sharpness"] = 0.5
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert cli.main(["verify", str(root)]) == 2
    out = capsys.readouterr().out
    assert "BAD picture 1       no argument 'sharpness'" in out
    assert "ok  picture 2 " in out
