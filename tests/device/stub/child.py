"""A child process runs test functions with the stub as its driver, one after the other, as its parent names them.

``python -m tests.device.stub.child SETTINGS``; on stdin come lines of ``module name``, on stdout goes a JSON for each.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from typing import Any

from .library import Stub


def run(stub: Stub, module: str, name: str) -> dict[str, Any]:
    """What came of a test: nothing, why it was skipped, or its traceback."""
    import pytest

    gc.collect()  # what an earlier test left
    stub.late(False)
    stub.clear()
    stub.log()
    try:
        getattr(importlib.import_module(module), name).body(stub)
    except pytest.skip.Exception as skipped:
        return {"skipped": str(skipped)}
    except BaseException:
        return {"failed": traceback.format_exc() + "\n".join(["log:", *stub.lines[-40:]])}
    return {}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a test prints
    stub = Stub(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(run(stub, *line.split())), file=answers, flush=True)


if __name__ == "__main__":
    main()
