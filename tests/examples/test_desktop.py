"""The real window, clicked on a display: the user's, or a virtual one that this file starts."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image, ImageOps, ImageTk

import edgediff

from .conftest import PATIENCE, Gated

tk = pytest.importorskip("tkinter", reason="this Python has no tkinter (Debian: python3-tk)")

from edgediff.examples import desktop  # noqa: E402

PROMPT = "a tiger on a green background"


@pytest.fixture(scope="module", autouse=True)
def display() -> Iterator[None]:
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY"):
        yield
        return
    if shutil.which("Xvfb") is None:
        pytest.skip("the window needs a display: there is no DISPLAY, and no Xvfb to make one (Debian: xvfb)")
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "1024x768x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as chosen, pytest.MonkeyPatch.context() as patch:
            number = chosen.readline().strip()  # when it is ready, or nothing when it ended
            assert number, "Xvfb did not start"
            patch.setenv("DISPLAY", f":{number}")
            yield
    finally:
        server.terminate()
        server.wait(PATIENCE)


class Kept(queue.Queue[Any]):
    """A queue that remembers the pictures that went through it."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[Image.Image] = []

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if item[2] is not None:
            self.pictures.append(item[2])
        super().put(item, block, timeout)


@pytest.fixture
def window(gated: Gated) -> Iterator[Any]:
    root = tk.Tk()
    window = desktop.Window(root, gated.pipe)
    window.news = Kept()
    window.prompt.delete(0, "end")
    window.prompt.insert(0, PROMPT)
    yield window
    gated.open()
    with suppress(tk.TclError):  # a test may have closed it
        root.destroy()
    if hasattr(window, "worker"):
        window.worker.join(PATIENCE)
        assert not window.worker.is_alive()


def pump(window: Any, until: Callable[[], bool]) -> None:
    """Let Tk work, as its main loop does, until something is true."""
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, f"the window says {window.words['text']!r}"
        window.root.update()
        time.sleep(0.002)


def says(window: Any, words: str) -> Callable[[], bool]:
    return lambda: window.words["text"] == words


def buttons(window: Any) -> tuple[str, str]:
    return str(window.generate["state"]), str(window.cancel["state"])


def shown(window: Any) -> Image.Image:
    """The pixels that Tk holds for the label."""
    assert str(window.picture.cget("image")[0]) == str(window.image)
    return ImageTk.getimage(window.image).convert("RGB")


def in_the_window(picture: Image.Image) -> bytes:
    return ImageOps.pad(picture, (desktop.SIDE, desktop.SIDE), color="lightgray").tobytes()


def test_previews_then_the_picture(window: Any, gated: Gated, emoji: edgediff.Pipeline) -> None:
    assert buttons(window) == ("normal", "disabled")
    window.generate.invoke()
    seen = []
    for k in range(1, 21):
        pump(window, lambda k=k: gated.unet.calls == k)  # the worker is in a call; the window goes on
        assert buttons(window) == ("disabled", "normal")
        gated.unet.let()
        pump(window, says(window, f"Step {k} of 20"))
        assert float(window.bar["value"]) == k / 20
        seen.append(shown(window).tobytes())
        assert seen[-1] == in_the_window(window.news.pictures[-1])
    assert len(set(seen)) == 20  # each step showed another preview
    pump(window, lambda: gated.decoder.calls == 1)
    gated.decoder.let()
    pump(window, says(window, "Done"))
    pump(window, lambda: buttons(window) == ("normal", "disabled"))

    picture = window.news.pictures[-1]
    seed = re.search(r"Seed: (\d+)", picture.info["parameters"])
    assert seed is not None
    assert picture.tobytes() == emoji(PROMPT, seed=int(seed[1])).images[0].tobytes()
    assert shown(window).tobytes() == in_the_window(picture)


def test_cancel_stops_within_one_call_and_the_next_one_runs(window: Any, gated: Gated) -> None:
    window.generate.invoke()
    gated.unet.let(2)
    pump(window, says(window, "Step 2 of 20"))
    pump(window, lambda: gated.unet.calls == 3)
    window.cancel.invoke()
    pump(window, says(window, "Stopping"))
    gated.open()
    pump(window, says(window, "Cancelled"))
    pump(window, lambda: buttons(window) == ("normal", "disabled"))
    assert gated.unet.calls == 3
    assert gated.decoder.calls == 0

    window.generate.invoke()
    pump(window, says(window, "Done"))
    assert gated.unet.calls == 23


def test_closing_while_it_draws(window: Any, gated: Gated) -> None:
    window.generate.invoke()
    pump(window, lambda: gated.unet.calls == 1)
    window.root.tk.eval(window.root.protocol("WM_DELETE_WINDOW"))  # as a window manager does
    with pytest.raises(tk.TclError):
        window.root.winfo_exists()  # gone at once
    assert window.worker.is_alive()
    gated.open()
    window.worker.join(PATIENCE)
    assert not window.worker.is_alive()
    assert gated.unet.calls == 1


def test_an_error_is_shown(window: Any) -> None:
    window.prompt.insert(0, "(")
    window.generate.invoke()
    pump(window, lambda: "the ( at character 1 of the prompt is never closed" in window.words["text"])
    pump(window, lambda: buttons(window) == ("normal", "disabled"))


PROGRAM = """
import runpy, tkinter as tk

class Root(tk.Tk):
    def __init__(self, **options):
        super().__init__(**options)
        self.after(50, self.click)

    def click(self):
        button, = (w for w in self.winfo_children() if w.winfo_class() == "TButton" and w["text"] == "Generate")
        button.invoke()
        self.look()

    def look(self):
        words = [str(w["text"]) for w in self.winfo_children() if w.winfo_class() == "TLabel"]
        if any(w.startswith(("Step", "Done")) for w in words):
            print(words, flush=True)
            self.tk.eval(self.protocol("WM_DELETE_WINDOW"))
        else:
            self.after(5, self.look)

tk.Tk = Root
runpy.run_module("edgediff.examples.desktop", run_name="__main__")
"""


def test_the_program_ends_when_its_window_is_closed() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.stderr == ""
    assert run.returncode == 0
    assert "Step" in run.stdout or "Done" in run.stdout
