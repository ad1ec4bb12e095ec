"""What a type checker tells a program that embeds the runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RIGHT = """
import edgediff

pipe = edgediff.load()
image = pipe("a cat", seed=7, sampler="dpmpp_2m", output_type="pil").images[0]
image.save("a.png")
edgediff.save(image, "b.png")
for step in pipe.stream(["a cat", "a dog"], seed=[1, 2], guidance=edgediff.Apg(), num_inference_steps=4):
    step.preview("matrix")[0].show()
    print(step.index, step.total, step.latents.shape, step.x0.shape)
print(step.result().seeds)
print(pipe("a cat", output_type="np").array.shape)
"""
WRONG = {
    'pipe("a cat", guidance_scal=3)': 'Unexpected keyword argument "guidance_scal" for "__call__"',
    'pipe.stream("a cat", strength=0.5)': 'Unexpected keyword argument "strength" for "stream"',
    'pipe("a cat", seed="x")': 'has incompatible type "str"',
    'pipe.stream("a cat", output_type="jpeg")': "has incompatible type \"Literal['jpeg']\"",
    'pipe("a cat", "a dog")': "Too many positional arguments",
}


@pytest.mark.slow
@pytest.mark.slow
def test_a_program_that_embeds_the_runtime(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (extra dev)")
    program = tmp_path / "program.py"
    program.write_text(RIGHT + "\n".join(WRONG) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(program)]
    run = subprocess.run(
        [*command, "--cache-dir", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    first = RIGHT.count("\n") + 1
    errors = [line for line in run.stdout.splitlines() if "program.py" in line and ": error:" in line]
    assert len(errors) == len(WRONG), run.stdout
    for k, (line, message) in enumerate(zip(errors, WRONG.values(), strict=True)):
        assert f"program.py:{first + k}: error: " in line
        assert message in line
