"""What is promised about strangers' files, long runs and kills, tried at length.

    python -m benchmarks.trust [RUN ...] [--cases 10000]

Every run is a script of its own (`tests/fuzz`, `tests/endurance`), which exits with 1 where it finds something; this
one keeps their figures together. With names of runs, the figures of the others stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS, table, write

FEWER = {
    "foreign": 5,
    "lines": 10,
    "pictures": 10,
    "loras": 10,
}  # each takes longer, or there are fewer ways
KINDS = ("bundles", "foreign", "manifests", "arguments", "lines", "pictures", "loras")
KILLED = ("generate", "export", "build")


def runs(cases: int, kills: int) -> dict[str, list[str]]:
    """The module of each run, with its arguments."""
    out = {}
    for kind in KINDS:
        out[kind] = ["tests.fuzz", kind, "--seed", "1", "--cases", str(cases // FEWER.get(kind, 1))]
    out["traced"] = ["tests.fuzz.traced", "--cases", str(cases // 10)]
    out["soak"] = ["tests.endurance.soak"]
    for kind in KILLED:
        out[f"kill-{kind}"] = ["tests.endurance.kills", kind, "--times", str(kills)]
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(runs(10, 1))} (default: all)")
    parser.add_argument("--cases", type=int, default=10_000, metavar="N")
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    args = parser.parse_args()
    known = runs(args.cases, args.kills)
    if unknown := [name for name in args.runs if name not in known]:
        parser.error(f"no run {unknown[0]!r}; choose from {', '.join(known)}")
    path = RESULTS / "trust.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    bad = 0
    for name in args.runs or known:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "figures.json"
            command = [sys.executable, "-m", *known[name], "--out", str(out)]
            bad += subprocess.run(command, cwd=REPOSITORY, check=False).returncode != 0
            figures = json.loads(out.read_text(encoding="utf-8"))
        figures.pop("notes", None)
        results |= figures if name == "soak" else {name: figures.get(name, figures)}
        write("trust", results, ["numpy", "onnxruntime", "tokenizers", "pillow", "hypothesis"])
    print(table(["run", "figures"], [[name, facts] for name, facts in results.items()]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
