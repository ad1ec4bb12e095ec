"""Requests at once from one pipeline: the event loop opens the gates, so a blocked one would never get on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest
from PIL import Image

import edgediff
from edgediff.examples.service import Service

from .conftest import PATIENCE, Gated

PROMPTS = ("a red apple on a blue background", "a tiger on a green background")
SETTINGS = {"num_inference_steps": 3, "seed": 7}


async def until(true: Callable[[], bool]) -> None:
    async def look() -> None:
        while not true():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(look(), PATIENCE)


def test_two_at_once_equal_one_after_the_other(gated: Gated, emoji: edgediff.Pipeline) -> None:
    serial = [emoji(prompt, **SETTINGS).images[0].tobytes() for prompt in PROMPTS]
    seen: dict[str, list[tuple[int, int]]] = {prompt: [] for prompt in PROMPTS}

    async def both(service: Service) -> list[bytes]:
        def draw(prompt: str) -> asyncio.Task[edgediff.Result]:
            progress = seen[prompt].append
            return asyncio.create_task(service.draw(prompt, lambda s: progress((s.index, s.total)), **SETTINGS))

        tasks = [draw(prompt) for prompt in PROMPTS]
        for k in range(3):
            await until(lambda k=k: gated.unet.calls == 2 * k + 2)  # both are in the U-Net now, and the loop runs
            assert [len(steps) for steps in seen.values()] == [k, k]
            gated.unet.let(2)
        await until(lambda: gated.decoder.calls == 2)
        gated.decoder.let(2)
        return [(await task).images[0].tobytes() for task in tasks]

    with ThreadPoolExecutor(2) as threads:
        assert asyncio.run(both(Service(gated.pipe, threads))) == serial
    assert seen == {prompt: [(0, 3), (1, 3), (2, 3)] for prompt in PROMPTS}
    assert gated.unet.calls == 6


def test_cancelling_stops_within_one_call(gated: Gated) -> None:
    async def cancel(service: Service) -> None:
        task = asyncio.create_task(service.draw(PROMPTS[0], lambda step: None, num_inference_steps=20))
        await until(lambda: gated.unet.calls == 1)
        gated.unet.let()
        await until(lambda: gated.unet.calls == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, PATIENCE)  # while the second call still runs
        gated.open()

    with ThreadPoolExecutor(2) as threads:
        asyncio.run(cancel(Service(gated.pipe, threads)))
    assert gated.unet.calls == 2  # all threads have ended
    assert gated.decoder.calls == 0


def test_others_go_on_when_one_is_cancelled(gated: Gated, emoji: edgediff.Pipeline) -> None:
    async def one(service: Service) -> bytes:
        first, second = (asyncio.create_task(service.draw(p, lambda step: None, **SETTINGS)) for p in PROMPTS)
        await until(lambda: gated.unet.calls == 2)
        first.cancel()
        gated.open()
        return (await second).images[0].tobytes()

    with ThreadPoolExecutor(2) as threads:
        picture = asyncio.run(one(Service(gated.pipe, threads)))
    assert picture == emoji(PROMPTS[1], **SETTINGS).images[0].tobytes()
    assert gated.unet.calls == 4


def test_leaving_the_steps_early(gated: Gated) -> None:
    gated.open()

    async def leave(service: Service) -> edgediff.Step:
        async with aclosing(service.steps(PROMPTS[0], num_inference_steps=20)) as steps:
            async for step in steps:
                if step.index == 1:
                    return step
        raise AssertionError("no second step")

    with ThreadPoolExecutor(1) as threads:
        step = asyncio.run(leave(Service(gated.pipe, threads)))
    assert step.preview()[0].size == (64, 64)
    assert gated.unet.calls == 2


def test_command_ends_a_bad_request_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgediff.examples.service", "a (cat", *PROMPTS]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("service-1.png: the ( at character 3 of the prompt is never closed")
    assert len(run.stderr.splitlines()) == 1
    said = run.stdout.splitlines()
    for name, prompt in zip(("service-2.png", "service-3.png"), PROMPTS, strict=True):
        assert [line for line in said if line.startswith(name)] == [f"{name}: step {k} of 20" for k in range(1, 21)]
        with Image.open(tmp_path / name) as image:
            assert image.size == (64, 64)
            assert image.text["parameters"].startswith(prompt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["service-2.png", "service-3.png"]
