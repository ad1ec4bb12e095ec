"""The command line, run in this process; what it printed is looked at."""

from __future__ import annotations

import contextlib
import io

from edgediff.cli.main import main
from edgediff.errors import EdgediffError

ERROR_LINES = 4


class Refused(EdgediffError):
    """The command said what is wrong, and gave exit code 2."""


def command(*argv: str) -> str:
    """What a command prints. Raises ``Refused`` for exit code 2, and ``AssertionError`` for what it must not do."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
    except SystemExit as end:  # --help, --version
        code = end.code if isinstance(end.code, int) else 1
    text, said = out.getvalue(), err.getvalue()
    for c in {*text, *said} - {"\n", "\r"}:
        assert c.isprintable(), f"it prints {c!r}: {(text + said)[:500]!r}"
    assert "Traceback" not in said, said[:1500]
    assert len(said) < 8000, f"{len(said)} characters of errors: {said[:300]!r}"
    if code == 2:
        assert len(said.splitlines()) <= ERROR_LINES, said[:1500]
        raise Refused(said.strip())
    assert code == 0, f"exit code {code}: {said[:500]}"
    return text
