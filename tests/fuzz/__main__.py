"""``python -m tests.fuzz``: the long run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from .children import Outcome, in_child
from .kinds import Kind

KINDS = ("bundles", "foreign", "manifests", "arguments", "lines", "pictures", "loras")


def kind_of(name: str) -> Kind:
    """A kind by its name; its module loads what it needs."""
    from importlib import import_module

    kind: Kind = import_module(f"{__package__}.{name}").KIND
    return kind


def fuzz(kind: Kind, numbers: range, seed: int, work: Path, keep: Path | None = None) -> list[Outcome]:
    """Run cases of one kind, each some in a child, and keep the folders of those that are not fine."""
    kind.prepare(work)
    outcomes: list[Outcome] = []
    for first in range(numbers.start, numbers.stop, kind.at_once):
        some = range(first, min(first + kind.at_once, numbers.stop))
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=work))
        try:
            found = in_child(lambda report, f=folder, n=some: kind.run(n, seed, f, report), [folder, *kind.roots(work)])
            outcomes += found
            if keep is not None and not all(outcome.fine for outcome in found):
                name = f"{kind.name}-{seed}-{first}"
                shutil.rmtree(keep / name, ignore_errors=True)
                shutil.copytree(folder, keep / name, symlinks=True, ignore=_pipes)
                report = "\n\n".join(json.dumps(asdict(o), indent=1) for o in found if not o.fine)
                (keep / f"{name}.txt").write_text(report, encoding="utf-8")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def _pipes(folder: str, names: list[str]) -> list[str]:
    paths = ((name, Path(folder, name)) for name in names)
    return [name for name, path in paths if not (path.is_file() or path.is_dir() or path.is_symlink())]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--cases", type=int, default=500, metavar="N", help="of each kind (default: 500)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folders of cases that were found")
    parser.add_argument("--out", type=Path, metavar="FILE", help="figures, as JSON")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.kinds if name not in KINDS]:
        parser.error(f"no kind {unknown[0]!r}; choose from {', '.join(KINDS)}")
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    figures, bad = {}, 0
    for name in args.kinds or KINDS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
            outcomes = _in_jobs(name, args, Path(work))
        verdicts = Counter(outcome.verdict for outcome in outcomes)
        cpu = max((outcome.cpu for outcome in outcomes), default=0.0)
        figures[name] = {"cases": args.cases, "seconds": round(time.monotonic() - start), **verdicts,
                         "longest_cpu_s": round(cpu, 1)}  # fmt: skip
        print(f"{name}: {figures[name]}", flush=True)
        for outcome in [o for o in outcomes if not o.fine or o.verdict == "panicked"][:20]:
            print(f"  {outcome.verdict}: {outcome.case[:300]}\n    {outcome.detail[-600:]}", flush=True)
        bad += sum(not outcome.fine for outcome in outcomes)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 1 if bad else 0


def _in_jobs(name: str, args: argparse.Namespace, work: Path) -> list[Outcome]:
    """Share the cases among processes."""
    kind = kind_of(name)
    children = []
    for job in range(args.jobs):
        first = args.first + args.cases * job // args.jobs
        last = args.first + args.cases * (job + 1) // args.jobs
        if (child := os.fork()) == 0:
            code = 1
            try:
                own = work / str(job)
                own.mkdir()
                outcomes = fuzz(kind, range(first, last), args.seed, own, args.keep)
                (work / f"{job}.json").write_text(json.dumps([asdict(o) for o in outcomes]), encoding="utf-8")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise RuntimeError(f"a job of {name} failed")
    return [Outcome(**o) for job in range(args.jobs) for o in json.loads((work / f"{job}.json").read_text("utf-8"))]


if __name__ == "__main__":
    sys.exit(main())
