"""``@on_stub()`` makes a test run in a child process whose driver is the stub."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .library import Stub, environment

Body = Callable[[Stub], None]


class Children:
    """The children of a session, one for each kind of driver.

    Args:
        library: the stub, compiled.
    """

    def __init__(self, library: Path) -> None:
        self._library = library
        self._children: dict[str, subprocess.Popen[str]] = {}

    def run(self, module: str, name: str, settings: dict[str, Any], alone: bool) -> dict[str, Any]:
        """Run a test function in the child of these settings, or in one of its own."""
        key = json.dumps([settings, name if alone else ""], sort_keys=True)
        if key not in self._children:
            self._children[key] = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", f"{__package__}.child", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(self._library),
            )
        child = self._children[key]
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{module} {name}\n")
        child.stdin.flush()
        answer = child.stdout.readline()
        if not answer:
            del self._children[key]
            return {"failed": f"the child ended with exit code {child.wait()}"}
        if alone:
            self._end(self._children.pop(key))
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        while self._children:
            self._end(self._children.popitem()[1])

    @staticmethod
    def _end(child: subprocess.Popen[str]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        child.wait()
        child.stdout.close()


def on_stub(alone: bool = False, **settings: Any) -> Callable[[Body], Any]:
    """Run the test in a child; it is given the stub, with an empty log.

    Args:
        alone: in a child of its own.
        settings: of ``Stub``.
    """

    def wrap(body: Body) -> Any:
        def test(stub_children: Children) -> None:
            found = stub_children.run(body.__module__, body.__name__, settings, alone)
            if "skipped" in found:
                pytest.skip(found["skipped"])
            if "failed" in found:
                pytest.fail(found["failed"], pytrace=False)

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        test.body = body  # type: ignore[attr-defined]
        return test

    return wrap
