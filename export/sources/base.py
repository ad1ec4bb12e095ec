"""A source is a checkpoint whose components load one at a time, whatever files it lies in."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from ..weight import Weight

# Components that become parts of a bundle, by the classes that can be exported.
COMPONENT_CLASSES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "preview_decoder": ("AutoencoderTiny",),
}
# Text encoders with their tokenizers, in the order in which their states stand side by side.
ENCODERS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))


class Source(Protocol):
    """A checkpoint to export. ``path`` names it in messages; ``pipeline`` is diffusers' class."""

    path: Path
    pipeline: str

    def has(self, component: str) -> bool:
        """Whether the checkpoint holds this component."""

    def hollow(self, component: str) -> Any:
        """Make the module without weights, in eval mode: parameters on the meta device, buffers with their values."""

    def weights(self, component: str) -> dict[str, Weight]:
        """Find the float32 weights by the names of the module's parameters; none is read."""

    def check(self, exchanged: Collection[str] = ()) -> None:
        """Raise ``BundleError`` unless every component's files hold what its config asks for; no weight is read.

        Components that are ``exchanged`` are not looked at.
        """

    def reference(self, component: str, wide: bool = False) -> Any:
        """Load the module for the proof, as its own library reads it; it computes in float32, however it is stored.

        With ``wide`` it is held in float32, too. Tracing reads the weights in another way: each shows the other's
        mistakes.
        """

    def notes(self) -> list[str]:
        """Say what ``reference`` could not have its library read; empty where it could."""

    def reference_scheduler(self) -> Any:
        """Make diffusers' scheduler as its own library reads it."""

    def reference_tokenizer(self, component: str) -> Any:
        """Load the tokenizer that diffusers' pipeline would use: of the class that the source names, slow or fast."""

    def scheduler(self) -> dict[str, Any]:
        """Return the scheduler's config with every default and its ``_class_name``."""

    def tokenizer(self, component: str) -> Any:
        """Load a fast CLIP tokenizer: ``tokenizer`` or ``tokenizer_2``."""

    def setting(self, name: str) -> Any:
        """Return a setting of the pipeline itself (``force_zeros_for_empty_prompt``); None where there is none."""

    def fingerprint(self) -> str:
        """Return a text that changes when a file of the source does."""


def encoders_of(source: Source) -> list[tuple[str, str]]:
    """List the (text encoder, tokenizer) components that a source has, in the order of ``ENCODERS``."""
    return [(encoder, tokenizer) for encoder, tokenizer in ENCODERS if source.has(encoder)]
