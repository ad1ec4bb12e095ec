"""The child: it loads the libraries, binds itself, and then opens and runs what its parent says, until that is gone."""

from __future__ import annotations

import mmap
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import Part, Tensor
from ...errors import EdgediffError, EngineError
from ...prompts.tokenizer import Tokenizer
from ..providers import SILENCE
from ..session import OnnxRuntimeEngine, import_onnxruntime
from .channel import DTYPES, MEMORY, NO_MEMORY, TEXT, ChannelError, Message, receive, room, send, take_over, view, write
from .limits import apply, end_with


class Worker:
    """A worker serves one parent.

    Args:
        connection: to it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._memory: mmap.mmap | None = None
        self._size = 0
        self._opened: dict[int, Any] = {}

    def serve(self) -> None:
        """Answer until the parent is gone."""
        operations: dict[str, Callable[[Message], None]] = {
            "arena": self._arena, "engine": self._engine, "run": self._run, "tokenizer": self._tokenizer,
            "tokens": self._tokens,
        }  # fmt: skip
        while True:
            try:
                message = receive(self._connection, longest=None)
            except ChannelError:
                return
            for number in message.get("drop", ()):
                self._opened.pop(number, None)
            try:
                operations[message["op"]](message)
            except (ChannelError, SystemExit):
                return
            except BaseException as error:  # a panic of the tokenizers is no Exception
                self._fail(error)

    def _arena(self, message: Message) -> None:
        try:
            self._memory, self._size = take_over(self._connection, message["size"]), message["size"]
        except (OSError, MemoryError, IndexError) as error:
            # An answer would be taken for one to the message behind, and that finds its arrays in the old arena.
            os.write(2, f"shared memory: {error or 'Cannot allocate memory'}\n".encode())
            raise SystemExit from error

    def _engine(self, message: Message) -> None:
        part = Part((), _tensors(message["inputs"]), _tensors(message["outputs"]))
        engine = OnnxRuntimeEngine(message["name"], Path(message["path"]), part, message["threads"])
        self._opened[message["id"]] = engine
        send(self._connection, {})

    def _run(self, message: Message) -> None:
        assert self._memory is not None
        engine: OnnxRuntimeEngine = self._opened[message["id"]]
        self._answer(engine.name, engine(**view(self._memory, message["arrays"])))

    def _tokenizer(self, message: Message) -> None:
        tokenizer = Tokenizer(Path(message["path"]), message["max_length"], message["pad_id"])
        self._opened[message["id"]] = tokenizer
        send(self._connection, {"begin": tokenizer.begin, "end": tokenizer.end, "comma": tokenizer.comma})

    def _tokens(self, message: Message) -> None:
        tokens = self._opened[message["id"]].tokens(message["text"])
        self._answer("tokenizer", {"tokens": np.array(tokens, np.int64).reshape(-1, 2)})

    def _answer(self, name: str, arrays: dict[str, NDArray[Any]]) -> None:
        """Give arrays back; the parent makes a larger arena where they have no room."""
        for key, array in arrays.items():
            kind = array.dtype.name if isinstance(array, np.ndarray) else type(array).__name__
            if kind not in DTYPES:
                raise EngineError(f"{name} gave {key} of type {kind}; it must be numbers")
        if (needed := room(arrays)) > self._size:
            send(self._connection, {"needs": needed})
            message = receive(self._connection)
            if message["op"] != "arena":
                return  # more than it may be
            self._arena(message)
        assert self._memory is not None
        send(self._connection, {"arrays": write(self._memory, arrays)})

    def _fail(self, error: BaseException) -> None:
        text = str(error)
        kind = type(error).__name__ if isinstance(error, EdgediffError) else EngineError.__name__
        if isinstance(error, MemoryError) or NO_MEMORY.search(text):
            kind = MEMORY
        elif not isinstance(error, EdgediffError):
            text = f"{type(error).__name__}: {text}"
        send(self._connection, {"error": kind, "text": text[:TEXT]})


def _tensors(described: Any) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, dtype, tuple(shape)) for name, dtype, shape in described)


def main(descriptor: int, parent: int) -> None:
    """Serve the parent on a socket.

    Args:
        descriptor: the socket's.
        parent: its process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    end_with(parent)
    connection = socket.socket(fileno=descriptor)
    ready: Message = {}
    try:
        import tokenizers  # noqa: F401

        # It may not pin its threads to cores, which it would complain of.
        import_onnxruntime().set_default_logger_severity(SILENCE)
    except Exception as error:
        ready = {"error": EngineError.__name__, "text": str(error)}
    try:
        order = receive(connection)
        apply(order["memory"], map(Path, order["readable"]))
    except (OSError, ValueError) as error:
        ready = {"error": EngineError.__name__, "text": f"the child cannot bind itself: {error}"}
    send(connection, ready)
    if not ready:
        Worker(connection).serve()
    os._exit(0)
