"""The READMEs say what is so: their code runs, their links lead somewhere, their figures are the measured ones."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgediff

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    if (ROOT / ".git").exists()
    else [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.md")]
)
RAW = "https://raw.githubusercontent.com/edgediff/edgediff/main/"
FENCE = re.compile(
    r"(?:^[ ]*<!-- (?P<note>[^\n]*?) -->\n)?^(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
LINK = re.compile(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
RUN = ("python", "sh")
NOT_RUN, PRINTS = "not run: ", "prints what follows"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what the comment before it says, its text, and what follows it."""

    language: str
    note: str
    code: str
    following: str


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [(m["language"], m["note"] or "", textwrap.dedent(m["code"])) for m in FENCE.finditer(text)]
    following = [code for _, _, code in found[1:]] + [""]
    return [Block(*block, after) for block, after in zip(found, following, strict=False)]


def outside_fences(document: str) -> str:
    """The text of a document without its fenced blocks and inline code."""
    text = FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(document: Path) -> set[str]:
    """What ``#...`` may name in a document, by GitHub's rule."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text))
    return set(plain)


def is_run(block: Block) -> bool:
    return block.language in RUN and not block.note.startswith(NOT_RUN)


RUNNABLE = [document for document in DOCUMENTS if any(map(is_run, blocks(document)))]
LEFT_OUT = [(d, b.note.removeprefix(NOT_RUN)) for d in DOCUMENTS for b in blocks(d) if b.note.startswith(NOT_RUN)]


@pytest.mark.parametrize("document", RUNNABLE)
def test_code_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks in one namespace, and every line of the shell's: the command ``edgediff`` and nothing else."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks(document):
        if not is_run(block):
            continue
        if block.language == "python":
            exec(compile(block.code, document, "exec"), names)
        else:
            printed = ""
            for line in block.code.splitlines():
                command = shlex.split(line, comments=True)
                assert command[0] == "edgediff", f"say why {line!r} is not run"
                done = subprocess.run(
                    [sys.executable, "-m", "edgediff", *command[1:]], capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, done.stderr
                printed += done.stdout
            if block.note == PRINTS:
                assert printed == block.following


@pytest.mark.parametrize(("document", "reason"), LEFT_OUT)
def test_code_that_is_not_run(document: str, reason: str) -> None:
    """Counted, by a skip with its reason."""
    pytest.skip(f"{document}: {reason}")


def test_every_block_says_what_it_is() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            assert block.language in (*RUN, "text"), f"{document}: {block.code[:60]!r}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in (a or b for a, b in LINK.findall(outside_fences(document))):
        if target.startswith(RAW):
            assert (ROOT / target.removeprefix(RAW)).is_file(), target
            continue
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / document).parent / path if path else ROOT / document
        assert place.exists(), f"{document}: {target}"
        if anchor:
            place = place / "README.md" if place.is_dir() else place
            assert anchor in anchors(place), f"{document}: {target}"


def test_pictures_of_the_first_page_work_elsewhere() -> None:
    """A package index shows README.md without the repository around it."""
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", (ROOT / "README.md").read_text("utf-8"))
    assert pictures
    assert all((a or b).startswith(RAW) for a, b in pictures)


def test_figures_are_those_that_were_measured() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.readme", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_commands_that_ci_runs() -> None:
    """``.ci/run`` takes its two commands from README.md."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^pip install .*edgediff generate .*apple\.png$", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^pip install .*pytest$", text, re.MULTILINE)) == 1


def test_every_name_is_explained() -> None:
    """Samplers, spacings, arguments and commands: each stands in the README of its folder."""
    from edgediff.sampling.samplers import SAMPLERS
    from edgediff.sampling.schedule import SPACINGS

    sampling, runtime = (
        (ROOT / "edgediff" / name).read_text(encoding="utf-8") for name in ("sampling/README.md", "README.md")
    )
    assert [name for name in (*SAMPLERS, *SPACINGS) if f"`{name}`" not in sampling] == []
    arguments = list(inspect.signature(edgediff.Pipeline.stream).parameters)[1:]
    assert [name for name in arguments if f"`{name}`" not in runtime + sampling] == []
    shown = subprocess.run([sys.executable, "-m", "edgediff", "--help"], capture_output=True, text=True, check=True)
    commands = re.findall(r"^    (\w+) ", shown.stdout, re.MULTILINE)
    assert "generate" in commands
    assert [name for name in commands if not re.search(rf"`{name}\b", runtime)] == []
