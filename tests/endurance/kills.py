"""Programs are killed at random moments; then the next run of the same must leave all as an undisturbed one does.

    python -m tests.endurance.kills export --times 200 --out kills-export.json
    python -m tests.endurance.kills build --times 200 --out kills-build.json
    python -m tests.endurance.kills generate --times 200 --out kills-generate.json

A kill hits where the program still ran and had begun to write. The program is the real one, started by a fork of a
process that has imported what it needs: most of its time is its work. The build is over the tests' stand-in for
TensorRT. POSIX only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

TESTS = Path(__file__).parents[1]
STANDIN = TESTS / "engines" / "tensorrt" / "standin"
LIMIT = 300.0  # seconds for an undisturbed run
POLL = 0.0005  # seconds
MISSES = 20  # kills that miss, for each that shall hit


@dataclass
class Program:
    """A program writes ``out`` in a folder.

    Args:
        run: runs it there and returns its exit code; called in a process of its own.
        out: what it makes, relative to the folder.
        again: the exit code of another run where ``out`` is whole already.
        read: a file of ``out`` as it is compared.
        several: whether ``out`` is a folder of results that come one after the other.
        is_seen: whether a file of ``out`` stands for anything, beside the others.
    """

    run: Callable[[Path], int]
    out: str
    again: int = 0
    read: Callable[[Path], bytes] = Path.read_bytes
    several: bool = False
    is_seen: Callable[[str, dict[str, bytes]], bool] = lambda name, found: True


@dataclass
class Figures:
    """What was counted. All but ``kills``, ``hits``, ``whole`` and the times must be 0."""

    program: str
    kills: int = 0
    hits: int = 0
    whole: int = 0  # of the hits: the result was in place already
    half: int = 0  # something lay in the result's place that is not the result
    failed: int = 0  # the next run
    different: int = 0  # from an undisturbed run, after the next one
    left_over: int = 0  # folders with more in them than the result, after the next run
    seconds: float = 0.0  # of an undisturbed run
    first_write: float = 0.0  # seconds after its start
    notes: list[str] = field(default_factory=list)  # what was wrong, with the seed's number

    @property
    def good(self) -> bool:
        return not (self.half or self.failed or self.different or self.left_over)


def start(program: Program, place: Path) -> int:
    """Start the program in ``place``, with its words in ``place/log``; returns the process."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        with (place / "log").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ["TMPDIR"] = str(place / "tmp")
        tempfile.tempdir = None
        os.chdir(place / "work")
        code = program.run(place / "work")
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finished(pid: int, seconds: float) -> int | None:
    """Wait for a process; its exit code, or None where it still runs after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(POLL)


def fresh(program: Program, place: Path) -> Path:
    for name in ("work", "tmp"):
        (place / name).mkdir(parents=True)
    if program.several:
        (place / "work" / program.out).mkdir()
    return place


def files(place: Path) -> list[Path]:
    """What lies in a place where a program may be writing, relative to it; folders only where they are empty."""
    found = []
    for name in ("work", "tmp"):
        for folder, inner, names in os.walk(place / name):
            found += [Path(folder, n).relative_to(place) for n in names]
            if not inner and not names and folder != str(place / name):
                found.append(Path(folder).relative_to(place))
    return sorted(found)


def made(program: Program, place: Path) -> dict[str, bytes] | None:
    """The files of the result, by name; None where there is none. Hidden ones are no result."""
    out = Path("work", program.out)
    if not (place / out).exists():
        return None
    names = [p.relative_to(out) for p in files(place) if p.is_relative_to(out) and (place / p).is_file()]
    return {p.as_posix(): program.read(place / out / p) for p in names if not is_hidden(p)}


def others(program: Program, place: Path) -> list[str]:
    """What lies beside the result, or hidden in it."""
    out = Path("work", program.out)
    return [p.as_posix() for p in files(place) if not p.is_relative_to(out) or is_hidden(p)]


def is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def undisturbed(program: Program, place: Path, figures: Figures) -> dict[str, bytes]:
    """Run the program to its end; note how long that took, and when it began to write."""
    began = time.monotonic()
    empty = files(fresh(program, place))
    pid = start(program, place)
    while (code := finished(pid, 0)) is None and time.monotonic() - began < LIMIT:
        if not figures.first_write and files(place) != empty:
            figures.first_write = time.monotonic() - began
        time.sleep(POLL)
    figures.seconds = time.monotonic() - began
    result = made(program, place)
    if code != 0 or result is None or others(program, place):
        raise RuntimeError(f"an undisturbed run fails ({code}): {others(program, place)} {(place / 'log').read_text()}")
    return result


def kill_once(program: Program, place: Path, after: float, wanted: dict[str, bytes], figures: Figures, k: int) -> None:
    """Kill the program so many seconds ``after`` it began to write, look, run it again, and look again."""
    empty = files(fresh(program, place))
    pid = start(program, place)
    while (code := finished(pid, 0)) is None and files(place) == empty:
        time.sleep(POLL)
    code = finished(pid, after) if code is None else code
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    figures.kills += 1
    if code is not None:
        return
    figures.hits += 1
    found = made(program, place)
    is_whole = found == wanted
    figures.whole += is_whole
    if found is not None and not is_whole and not is_part(program, found, wanted):
        figures.half += 1
        figures.notes.append(f"{k}: half a result: {sorted(found)}")
    code = finished(start(program, place), LIMIT)
    if code not in (0, program.again if is_whole else 0):
        figures.failed += 1
        figures.notes.append(f"{k}: the next run ended with {code}: {(place / 'log').read_text()[-300:]}")
    if (found := made(program, place) or {}) != wanted:
        figures.different += 1
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        figures.notes.append(f"{k}: another result in {names[:4]}")
    if left := others(program, place):
        figures.left_over += 1
        figures.notes.append(f"{k}: left over: {left[:4]}")


def is_part(program: Program, found: dict[str, bytes], wanted: dict[str, bytes]) -> bool:
    """Whether these are some of several results, each of them whole."""
    seen = {name: data for name, data in found.items() if program.is_seen(name, found)}
    return program.several and all(wanted.get(name) == data for name, data in seen.items())


def kill(name: str, program: Program, times: int, root: Path, seed: int = 0) -> Figures:
    """Kill a program until ``times`` kills have hit."""
    figures, rng = Figures(name), random.Random(seed)
    undisturbed(program, root / "first", Figures(name))  # files that are read become known to the system
    wanted = undisturbed(program, root / "undisturbed", figures)
    while figures.hits < times and figures.kills < MISSES * times:
        place = root / str(figures.kills)
        after = rng.uniform(0, figures.seconds - figures.first_write)
        kill_once(program, place, after, wanted, figures, figures.kills)
        shutil.rmtree(place)
    return figures


def imported(*names: str) -> None:
    """Import what the program does, before the fork."""
    for name in names:
        importlib.import_module(name)


def exporting(root: Path) -> Program:
    """``edgediff export`` of the tiny pipeline."""
    from edgediff_export import __main__ as cli

    from ..support.tiny import tiny_pipeline

    imported("edgediff_export.convert", "edgediff_export.optimum_layout.write")
    source = tiny_pipeline(root / "source")
    return Program(lambda work: cli.main([str(source), str(work / "out"), "--precision", "fp32"]), "out", again=2)


def building(root: Path) -> Program:
    """``edgediff build`` of the decoder, over the stand-in."""
    sys.path.insert(0, str(STANDIN))
    os.environ["PYTHONPATH"] = str(STANDIN)
    os.environ["EDGEDIFF_STANDIN_STEP"] = "0.02"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # the stand-in is of ONNX Runtime
    from edgediff.cli import main as cli
    from edgediff.device.driver import Gpu
    from edgediff.engines.tensorrt import installed

    imported("tensorrt")
    installed.probe = lambda ordinal: Gpu(0, "Stand-in GPU", (8, 7), 1 << 33, True, (12, 6))
    bundle = Path(shutil.copytree(TESTS / "data" / "half", root / "half"))

    def run(work: Path) -> int:
        return cli.main(["build", str(bundle), "--part", "vae_decoder", "--engine-cache", str(work / "cache")])

    def is_seen(name: str, found: dict[str, bytes]) -> bool:
        return not name.endswith(".engine") or name.replace(".engine", ".json") in found

    return Program(run, "cache", read=without_seconds, several=True, is_seen=is_seen)


def without_seconds(path: Path) -> bytes:
    """A file of the engine cache; a description without the time that its build took, timings of kernels without what
    an earlier build knew.
    """
    data = path.read_bytes()
    if path.name.startswith("timing-"):
        return data[:1]  # the stand-in notes a dot a build
    return json.dumps({**json.loads(data), "seconds": 0}).encode() if path.suffix == ".json" else data


def generating(root: Path) -> Program:
    """``edgediff generate`` of eight pictures."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from edgediff.cli import main as cli

    imported("onnxruntime", "tokenizers", "PIL.PngImagePlugin")
    bundle = Path(shutil.copytree(TESTS / "data" / "tiny", root / "tiny"))

    def run(work: Path) -> int:
        words = ["generate", "a tiger", "--model", str(bundle), "-o", str(work / "pictures" / "tiger.png")]
        return cli.main([*words, "--steps", "1", "--seed", "7", "--batch", "8", "--size", "96x96", "--threads", "1"])

    return Program(run, "pictures", several=True)


PROGRAMS: dict[str, Callable[[Path], Program]] = {"export": exporting, "build": building, "generate": generating}


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m tests.endurance.kills", description=__doc__.splitlines()[0])
    top.add_argument("program", choices=PROGRAMS)
    top.add_argument("--times", type=int, default=200, metavar="N", help="kills that shall hit")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--out", type=Path, metavar="FILE", help="where the figures are written, as JSON")
    args = top.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        figures = kill(args.program, PROGRAMS[args.program](root), args.times, root, args.seed)
    machine = {"machine": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    text = json.dumps({**machine, "seed": args.seed, **asdict(figures)}, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0 if figures.good and figures.hits >= args.times else 1


if __name__ == "__main__":
    sys.exit(main())
