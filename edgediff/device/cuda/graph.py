"""A CUDA graph is captured here, and a capture that fails is ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any


def capture_graph(stream: Any, work: Callable[[], None]) -> Any:
    """The graph of what ``work`` enqueues on cuda-core's ``stream``. The stream can be used afterwards in any case.

    Raises what ``work`` raises, and cuda-core's errors.
    """
    builder = stream.create_graph_builder()
    try:
        builder.begin_building("thread_local")  # other threads may go on allocating
        work()
        graph = builder.end_building().complete()
    except BaseException:
        with suppress(Exception):  # it ends the capture, and complains of what broke it once more
            builder.close()
        raise
    builder.close()
    return graph
