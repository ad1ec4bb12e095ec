"""PTX instructions a value of each step kernel, counted by running it in the tests' interpreter: no GPU is needed.

``python -m benchmarks.kernel.instructions`` writes results/kernel-instructions.json. What a GPU issues is counted apart
from it: ptxas makes other instructions of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.common import environment, table, write
from edgediff.sampling.rng import TorchCudaGenerator
from tests.device.ptx import compilers
from tests.device.ptx.comparison import Case
from tests.device.ptx.execution import Program

PACKAGES = ("numpy", "cuda-bindings", "nvidia-cuda-nvrtc")
SHAPE = (1, 4, 64, 64)
STEPS = 4
TYPICAL = 1  # the row that is counted: history is full, and noise is added
COLUMNS = {"euler": "no noise", "dpmpp_2m": "a history of one", "euler_a": "noise"}
WIDE, NARROW = 2, 132  # multiprocessors of the GPU whose grids are walked: four values a thread, and one


def main() -> None:
    programs, compiler = _programs()
    counted = {
        f"step_{pack}_{short[0]}_{short[1]}": {
            sampler: _by_value(programs, sampler, multiprocessors, *types) for sampler in COLUMNS
        }
        for pack, multiprocessors in ((1, NARROW), (4, WIDE))
        for short, types in _types()
    }
    rows = [[name, *(f"{found[sampler]:.1f}" for sampler in COLUMNS)] for name, found in counted.items()]
    print(table(["kernel", *(f"{name}: {what}" for name, what in COLUMNS.items())], rows))
    results = {"compiler": compiler, "target": compilers.TARGET, "instructions a value": counted}
    print(f"\n{environment(PACKAGES)['command']}; {compiler}; {write('kernel-instructions', results, PACKAGES)}")


def _programs() -> tuple[Mapping[str, Program], str]:
    reasons = []
    for name in compilers.COMPILERS:
        try:
            programs = compilers.programs(name)
        except compilers.NoCompiler as reason:
            reasons.append(str(reason))
            continue
        said = [line for line in compilers.compiled(name).splitlines() if "release" in line]
        return programs, f"{name}, {said[0].strip('/ ')}"
    raise SystemExit("; ".join(reasons))


def _types() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    short = {"float32": "f32", "float16": "f16"}
    return [((short[i], short[o]), (i, o)) for i in short for o in short]


def _by_value(programs: Mapping[str, Program], sampler: str, multiprocessors: int, sample: str, output: str) -> float:
    """Instructions that one typical row of a guided run takes, divided by its values."""
    case = Case(sampler, SHAPE, None, sample, output, "float32", STEPS, multiprocessors, TorchCudaGenerator)
    device: Any = case.device(programs)
    for k, _ in enumerate(case.loop(device).run(case.plan, case.generators())):
        if k == TYPICAL:
            (counts,) = (found for name, found in device.counts.items() if name.startswith("step"))
            return round(sum(counts.values()) / math.prod(SHAPE), 1)
        device.counts.clear()
    raise AssertionError("the run is shorter than that")


if __name__ == "__main__":
    main()
