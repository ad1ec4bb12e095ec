"""Serve several requests at once from one pipeline, without blocking the event loop.

python -m edgediff.examples.service "a red apple on a blue background" "a tiger on a green background"
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import edgediff

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """Serves any number of requests; their U-Net calls take turns in the threads, so that each gets its share."""

    pipe: edgediff.Pipeline
    threads: Executor

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a slow function in a thread while the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    async def steps(self, prompt: str, **arguments: Any) -> AsyncIterator[edgediff.Step]:
        """Yield the steps of a request, as ``pipe.stream`` does.

        A task that is cancelled, by a timeout or because the client hung up, stops at once. The U-Net call that its
        request is in ends in its thread, and nobody asks for another.
        """
        stream = await self.call(partial(self.pipe.stream, prompt, **arguments))
        while (step := await self.call(next, stream, None)) is not None:
            yield step

    async def draw(self, prompt: str, progress: Callable[[edgediff.Step], None], **arguments: Any) -> edgediff.Result:
        """Serve a whole request; ``progress`` is called in the event loop after every step."""
        async for step in self.steps(prompt, **arguments):
            progress(step)
        return await self.call(step.result)  # it decodes the latents, which is slow too


async def client(service: Service, prompt: str, path: Path) -> bool:
    """Ask for one picture; an error ends this request alone. Returns whether there is a picture."""

    def show(step: edgediff.Step) -> None:
        print(f"{path}: step {step.index + 1} of {step.total}", flush=True)

    try:
        result = await service.draw(prompt, show)
        await service.call(edgediff.save, result.images[0], path)
    except edgediff.EdgediffError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return False
    return True


async def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgediff.examples.service", description="Draw prompts at once.")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="its picture goes to service-1.png and so on")
    prompts = parser.parse_args(argv).prompts
    with edgediff.load() as pipe, ThreadPoolExecutor(2) as threads:  # the end waits for the calls that still run
        service = Service(pipe, threads)
        clients = [client(service, prompt, Path(f"service-{k}.png")) for k, prompt in enumerate(prompts, 1)]
        drawn = await asyncio.gather(*clients)
    return 0 if all(drawn) else 2


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
