"""A child process of this Python runs a module of ours, and no code from the folder in which it is started.

``python -m`` and ``python -c`` search the current folder before all others, and that may be one that a stranger filled:
a downloaded model's, with a ``torch.py`` in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])  # where the child finds this package, as this process did
# Its arguments are that folder, the module, and the module's own. Python 3.10 has put the current folder in the first
# place, as an empty string; nothing but what is built in is imported before that is gone. Our own folder comes last:
# other packages lie in it, and may be named like modules of Python's own.
START = (
    "import sys; root, name = sys.argv[1:3]; sys.argv[:3] = [name]; sys.path[:] = [p for p in sys.path if p]; "
    "root in sys.path or sys.path.append(root); import runpy; "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


def _flags() -> list[str]:
    """Return the options of Python that close a door, as far as this process was started with them."""
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    return safe + ["-E"] * sys.flags.ignore_environment + ["-s"] * bool(sys.flags.no_user_site)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module as ``python -m`` does, but for the current folder. Give it
    ``environment()``.
    """
    return [sys.executable, *_flags(), "-c", START, ROOT, module, *arguments]


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, or ``base``, for such a child and for those that it starts: ``PYTHONPATH``
    keeps its absolute folders, since the others are meant from the current one.
    """
    out = dict(os.environ if base is None else base)
    folders = [p for p in out.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(p)]
    if folders:
        out["PYTHONPATH"] = os.pathsep.join(folders)
    return out | {"PYTHONSAFEPATH": "1"}
