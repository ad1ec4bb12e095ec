"""A window with a prompt, a live preview and a Cancel button, which never freezes.

python -m edgediff.examples.desktop
"""

from __future__ import annotations

import queue
import threading
import tkinter as tk
from tkinter import ttk
from typing import Any

import edgediff

SIDE = 512  # pixels: the side of the picture in the window


def work(pipe: edgediff.Pipeline, prompt: str, cancelled: threading.Event, news: queue.SimpleQueue[Any]) -> None:
    """Draw a picture in a worker thread. Tk belongs to the main thread, so this knows a queue and no widget."""
    try:
        for step in pipe.stream(prompt):
            if cancelled.is_set():
                news.put(("Cancelled", 0.0, None))
                return  # leaving the loop ends the drawing
            done = step.index + 1
            news.put((f"Step {done} of {step.total}", done / step.total, step.preview()[0]))
        news.put(("Done", 1.0, step.result().images[0]))
    except edgediff.EdgediffError as error:
        news.put((str(error), 0.0, None))


class Window:
    """Shows a prompt, two buttons, and what the worker tells."""

    def __init__(self, root: tk.Tk, pipe: edgediff.Pipeline) -> None:
        self.root, self.pipe, self.cancelled = root, pipe, threading.Event()
        self.news: queue.SimpleQueue[Any] = queue.SimpleQueue()  # of (words, share done, picture)
        self.prompt = ttk.Entry(root)
        self.prompt.insert(0, "a red apple on a blue background")
        self.generate = ttk.Button(root, text="Generate", command=self.start)
        self.cancel = ttk.Button(root, text="Cancel", command=self.cancelled.set, state="disabled")
        self.image: Any = tk.PhotoImage(width=SIDE, height=SIDE)  # Tk shows it as long as Python holds it
        self.picture = ttk.Label(root, image=self.image)
        self.bar, self.words = ttk.Progressbar(root, maximum=1.0), ttk.Label(root, text="Ready", wraplength=SIDE)
        for column, widget in enumerate((self.prompt, self.generate, self.cancel)):
            widget.grid(row=0, column=column, sticky="ew", padx=4, pady=8)
        for row, below in enumerate((self.picture, self.bar, self.words), 1):
            below.grid(row=row, columnspan=3, sticky="ew", padx=4, pady=4)
        root.columnconfigure(0, weight=1)
        self.picture.bind("<Destroy>", lambda _: self.cancelled.set())  # Python waits for the U-Net call that runs

    def start(self) -> None:
        self.cancelled.clear()
        self.words["text"] = "Opening the model"
        self.worker = threading.Thread(target=work, args=(self.pipe, self.prompt.get(), self.cancelled, self.news))
        self.worker.start()
        self.poll()

    def poll(self) -> None:
        """Show what the worker has told, and look again soon while it runs."""
        from PIL import ImageOps, ImageTk

        running = self.worker.is_alive()  # asked first: all that a finished worker told is in the queue
        self.generate["state"], self.cancel["state"] = ("disabled", "normal") if running else ("normal", "disabled")
        while not self.news.empty():
            self.words["text"], self.bar["value"], picture = self.news.get()
            if picture is not None:
                self.image = ImageTk.PhotoImage(ImageOps.pad(picture, (SIDE, SIDE), color="lightgray"))
                self.picture["image"] = self.image
        if running and self.cancelled.is_set():
            self.words["text"] = "Stopping"
        if running:
            self.root.after(30, self.poll)  # milliseconds


if __name__ == "__main__":
    window = tk.Tk(className="edgediff")
    Window(window, edgediff.load())
    window.mainloop()
