"""The three training stages share a loop over steps that resumes and keeps a log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LOG_EVERY = 50
SAVE_EVERY = 500


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 2 % of the steps (at most 200), then follow a cosine to zero."""
    warm = max(1, min(200, steps // 50))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def save_atomic(state: dict[str, Any], path: Path) -> None:
    tmp = path.with_suffix(".tmp")
    torch.save(state, tmp)
    os.replace(tmp, path)


class Ema:
    """Keeps an exponential moving average of parameters, with the usual warm-up of the decay."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        live = model.state_dict()
        keys = [k for k in live if live[k].is_floating_point()]
        torch._foreach_lerp_([self.shadow[k] for k in keys], [live[k] for k in keys], 1 - decay)


def fit(
    name: str,
    folder: Path,
    modules: dict[str, torch.nn.Module],
    loss_at: Callable[[int], dict[str, torch.Tensor]],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    ema: float = 0.0,
    sample: Callable[[int], None] | None = None,
    sample_every: int = 1000,
) -> dict[str, Any]:
    """Minimise ``loss_at(step)["loss"]`` over ``steps`` steps; resume from ``folder/name.pt`` if it is there.

    ``loss_at`` draws its own batch from the step number, so that a resumed run sees the data it would have seen.
    Returns the final state (``modules`` by name, ``ema`` shadows when asked for, and ``seconds`` of compute).
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    shadows = {k: Ema(m, ema) for k, m in modules.items()} if ema else {}
    start, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(state[key])
            if key in shadows:
                shadows[key].shadow = state["ema"][key]
        optimizer.load_state_dict(state["optimizer"])
        start, seconds = state["step"], state["seconds"]
        # Lines past the checkpoint will be written again.
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
        log.write_text("".join(line for line in lines if json.loads(line)["step"] <= start), encoding="utf-8")

    def state_now(step: int) -> dict[str, Any]:
        out: dict[str, Any] = {k: m.state_dict() for k, m in modules.items()}
        out |= {"optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
        out["ema"] = {k: e.shadow for k, e in shadows.items()}
        return out

    sums: dict[str, float] = {}
    tick = time.monotonic()
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr)
        losses = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for key, shadow in shadows.items():
            shadow.update(modules[key], step)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        done = step + 1
        if done % LOG_EVERY == 0 or done == steps:
            seconds += time.monotonic() - tick
            tick = time.monotonic()
            count = (done - 1) % LOG_EVERY + 1
            row: dict[str, float] = {"step": done, "seconds": round(seconds, 1)}
            row |= {k: round(v / count, 5) for k, v in sums.items()}
            with log.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
            print(name, row, flush=True)
            sums = {}
        if done % SAVE_EVERY == 0 or done == steps:
            save_atomic(state_now(done), checkpoint)
        if sample and (done % sample_every == 0 or done == steps):
            sample(done)
    return state_now(max(start, steps))
