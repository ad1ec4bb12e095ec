"""What diffusers asks its models, and what they answer, is written down under the names of our parts' tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgediff.errors import BundleError

from ..precision.precisions import Case

PARTS = ("unet", "vae_decoder", "vae_encoder")
# What diffusers' U-Nets may be told besides what a bundle's is told, with the values that change nothing.
SILENT = ("cross_attention_kwargs", "class_labels", "attention_mask", "encoder_attention_mask", "added_cond_kwargs")


@dataclass
class Trace:
    """A trace is what a drawing by diffusers asked and answered, call by call.

    Attributes:
        calls: by part, in order: named inputs and outputs.
        final: the state (1, C, h, w) after the last step.
    """

    calls: dict[str, list[Case]] = field(default_factory=lambda: {name: [] for name in PARTS})
    final: NDArray[Any] | None = None


def array(tensor: torch.Tensor) -> NDArray[Any]:
    """Copy a tensor to NumPy; floats in float32."""
    values = tensor.detach().cpu()
    return np.array(values.float().numpy() if values.is_floating_point() else values.numpy())


@contextmanager
def recorded(pipe: Any, shift: float, clipped: bool, steps: torch.Generator | None) -> Iterator[Trace]:
    """Record what a pipeline asks its U-Net and autoencoder, and where its scheduler ends.

    Args:
        pipe: diffusers' pipeline.
        shift: added to latents before they are decoded (``--vae-shift``); diffusers' pipelines of these classes do not.
        clipped: the noise estimate follows the clipped picture, which DDIMScheduler does when it is asked to.
        steps: a generator for the scheduler's fresh noise in place of the one that the pipeline passes on.
    """
    trace = Trace()
    with ExitStack() as stack:
        hook = pipe.unet.register_forward_hook(_unet_hook(pipe.unet, trace.calls["unet"]), with_kwargs=True)
        stack.callback(hook.remove)
        if (vae := getattr(pipe, "vae", None)) is not None:
            _replace(stack, vae, "decode", lambda plain: _decoding(plain, shift, trace.calls["vae_decoder"]))
            _replace(stack, vae, "encode", lambda plain: _encoding(plain, shift, trace.calls["vae_encoder"]))
        _replace(stack, pipe.scheduler, "step", lambda plain: _stepping(plain, trace, clipped, steps))
        yield trace


def _replace(stack: ExitStack, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Put a wrapped method in place of an object's own, until the stack unwinds."""
    setattr(owner, name, wrap(getattr(owner, name)))
    stack.callback(delattr, owner, name)


def _unet_hook(unet: Any, calls: list[Case]) -> Callable[..., None]:
    signature = inspect.signature(type(unet).forward)

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        told = signature.bind(module, *args, **kwargs).arguments
        calls.append((unet_inputs(told), {"out_sample": array(out[0])}))

    return hook


def unet_inputs(told: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Name what a U-Net of diffusers is told as a bundle's inputs; ``BundleError`` for what no bundle takes."""
    sample, added = told["sample"], dict(told.get("added_cond_kwargs") or {})
    timestep = torch.as_tensor(told["timestep"]).float().reshape(-1).expand(len(sample))
    found = {"sample": array(sample), "timestep": array(timestep)}
    for name in ("encoder_hidden_states", "timestep_cond"):
        if told.get(name) is not None:
            found[name] = array(told[name])
    for name in ("text_embeds", "time_ids"):
        if name in added:
            found[name] = array(added.pop(name).float())
    others = {k: v for k, v in told.items() if k not in ("self", "kwargs", "return_dict", *found, *SILENT)}
    others |= {k: told.get(k) for k in SILENT[:-1]} | added
    if lost := [name for name, value in others.items() if value is not None and value != {}]:
        raise BundleError(f"unet: diffusers tells it {lost[0]}, which this version cannot")
    return found


def _decoding(plain: Any, shift: float, calls: list[Case]) -> Any:
    def decode(z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        z = z + shift if shift else z
        out = plain(z, *args, **kwargs)
        calls.append(({"latent_sample": array(z)}, {"sample": array(out[0])}))
        return out

    return decode


def _encoding(plain: Any, shift: float, calls: list[Case]) -> Any:
    def encode(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = plain(x, *args, **kwargs)
        found = getattr(out, "latent_dist", None)
        if found is None:
            outputs = {"latent_mean": array(out.latents)}
        else:
            outputs = {"latent_mean": array(found.mean), "latent_logvar": array(found.logvar)}
            found.mean = found.mean - shift if shift else found.mean
        calls.append(({"sample": array(x)}, outputs))
        return out

    return encode


def _stepping(plain: Any, trace: Trace, clipped: bool, steps: torch.Generator | None) -> Any:
    signature = inspect.signature(plain)

    def step(*args: Any, **kwargs: Any) -> Any:
        if clipped and "use_clipped_model_output" in signature.parameters:
            kwargs["use_clipped_model_output"] = True
        if steps is not None and "generator" in signature.parameters:
            kwargs["generator"] = steps
        out = plain(*args, **kwargs)
        trace.final = array(out[0])
        return out

    step.__signature__ = signature  # type: ignore[attr-defined]  # pipelines ask what a step takes
    return step
