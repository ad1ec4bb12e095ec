"""The parent's side: one child a pipeline, started when needed, again after it died, and ended with its parent."""

from __future__ import annotations

import atexit
import errno
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ... import errors
from ...errors import DeadlineError, EdgediffError, EngineError, MemoryLimitError, printable
from .channel import MEMORY, NO_MEMORY, TEXT, Arrays, ChannelError, ChannelTimeout, Gone, Message
from .limits import Held
from .running import Running, after_fork

START = 120.0  # seconds for a child to load its libraries
TYPES: Mapping[str, type[EdgediffError]] = {
    kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EdgediffError)
}


class Child:
    """A child runs a bundle's parts, one call at a time.

    Args:
        held: what it may take.
        readable: gives the files that it may read, when it starts.
    """

    def __init__(self, held: Held, readable: Callable[[], Sequence[Path]]) -> None:
        self.held, self._readable = held, readable
        self.lock = threading.RLock()
        self.generation = 0  # counts the children that there were
        self._running: Running | None = None
        self._dropped: deque[int] = deque()  # what nobody holds any longer
        self._closed = False
        _children.add(self)

    def start(self, what: str) -> None:
        """Have a child; the lock is held. Raises ``EngineError`` where it does not start."""
        if self._closed:
            raise EngineError(f"{what}: the pipeline was closed")
        if self._running is not None and self._running.alive:
            return
        self._end()
        self.generation += 1
        readable = [str(path) for path in self._readable()]
        try:
            running = self._running = Running()
            if self._closed:  # meanwhile: ``close`` saw nothing to end
                self._end()
                raise EngineError(f"{what}: the pipeline was closed")
            running.tell({"memory": self.held.memory, "readable": readable}, START)
            ready = running.hear(START)
        except (ChannelError, ChannelTimeout) as error:
            words = running.last_words() or str(error)
            self._end()
            if self._closed:
                raise EngineError(f"{what}: the pipeline was closed") from None
            raise EngineError(f"{what}: the child that should run it could not start: {words}") from error
        except BaseException:
            self._end()  # what it says of its start would be taken for an answer
            raise
        if "error" in ready:
            self._end()
            raise EngineError(f"{what}: {printable(str(ready.get('text'))[:TEXT])}")

    def ask(self, what: str, message: Message, arrays: Arrays | None = None) -> tuple[Message, dict[str, NDArray[Any]]]:
        """Let the child do something, and wait; the lock is held, and a child was started.

        Args:
            what: the part, for messages.

        Returns:
            Its answer, and copies of the arrays in it.

        Raises:
            EdgediffError: of the type and text that the child's own code raised.
            MemoryLimitError, DeadlineError: it went beyond a limit.
            EngineError: it died, or answers something that it must not. The next call has a fresh one.
        """
        running = self._running
        assert running is not None
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        try:
            answer, found = running.exchange({**message, "drop": dropped}, arrays or {}, self.held)
        except ChannelTimeout:
            self._end()
            raise DeadlineError(
                f"{what} was not done after {self.held.seconds:g} s, the limit of an isolated call, and was ended; "
                f"isolated=Limits(seconds=...) sets it"
            ) from None
        except ChannelError as error:
            raise self._death(what, running, error) from None
        except OSError as error:
            self._end()
            said = f"{what}: no memory can be shared with its child ({error.strerror})"
            raise (MemoryLimitError if error.errno == errno.ENOMEM else EngineError)(said) from error
        except BaseException:
            self._end()  # its answer would be taken for another's
            raise
        if "error" in answer:
            raise self._raised(what, answer)
        return answer, found

    def drop(self, number: int) -> None:
        """Let go of something that the child has opened, with the next message."""
        self._dropped.append(number)

    def close(self) -> None:
        """End the child, in the middle of a call if need be."""
        self._closed = True
        running = self._running
        if running is not None:
            running.kill()
        with self.lock:
            self._end()

    def _end(self) -> None:
        if self._running is not None:
            self._running.end()
            self._running = None

    def _raised(self, what: str, answer: Message) -> EdgediffError:
        kind, text = str(answer["error"]), printable(str(answer.get("text"))[:TEXT])
        if kind == MEMORY:
            return self._too_much(what, text)
        return TYPES.get(kind, EngineError)(text)

    def _too_much(self, what: str, text: str) -> MemoryLimitError:
        begins = "" if text.startswith(what) else f"{what}: "
        return MemoryLimitError(
            f"{begins}{text or 'there was no memory'}; the limit of an isolated child is {self.held.memory / 1e9:.2f} "
            f"GB; isolated=Limits(memory=...) sets it"
        )

    def _death(self, what: str, running: Running, error: ChannelError) -> EdgediffError:
        """Tell of what the child died; it is gone then."""
        gone = running.gone(5.0 if isinstance(error, Gone) else 0.0)
        words = running.last_words()
        self._end()
        if self._closed:
            return EngineError(f"{what}: the pipeline was closed")
        if not gone:
            return EngineError(f"{what}: its child gave {error}, and was ended")
        if NO_MEMORY.search(words):
            return self._too_much(what, words)
        return EngineError(f"{what}: the child that ran it {gone}{words and f': {words}'}")

    def _forget(self) -> None:
        """After a fork, in the new process: the child is the old one's."""
        self.lock = threading.RLock()
        if self._running is not None:
            self._running.forget()
            self._running = None

    def __del__(self) -> None:
        if getattr(self, "_running", None) is not None:
            self._end()


_children: weakref.WeakSet[Child] = weakref.WeakSet()


def _after_fork() -> None:
    after_fork()
    for child in list(_children):
        child._forget()


@atexit.register
def _end_all() -> None:
    for child in list(_children):
        child.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
