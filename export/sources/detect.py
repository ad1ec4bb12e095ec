"""The family of a single file shows in its header: in the names and widths of its text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgediff.errors import BundleError, choices
from edgediff.looks import looks_like

from .base import encoders_of
from .folder import Folder
from .original_layout import UNET, VAE
from .published_configs import FAMILIES, Family
from .safetensors_header import Shapes

EDM = "edm_"


def detect_family(path: Path, shapes: Shapes, folder: Folder | None, exchanged: Sequence[str]) -> Family:
    """Tell the family by the names of the text encoders, with ``folder`` by its, too; ``BundleError`` for none."""
    if marks := [name for name in shapes if name.startswith(EDM)]:
        raise BundleError(
            f"{path} has {marks[0]}: it is trained on EDM's noise levels, which this version does not run"
        )
    families = [f for f in FAMILIES if all(any(n.startswith(p) for n in shapes) for p in f.prefixes.values())]
    if not families:
        if look := looks_like(shapes):
            raise BundleError(f"{path} looks like {look}")
        raise BundleError(
            f"{path} holds no text encoder of {choices(f.name for f in FAMILIES)}; among its {len(shapes)} names: "
            f"{choices(sorted(shapes)[:3]) or 'none'}"
        )
    for component, prefix, what, advice in (
        ("unet", UNET, "U-Net", ""),
        ("vae", VAE, "autoencoder", "; give one as --vae"),
    ):
        if component not in exchanged and not any(name.startswith(prefix) for name in shapes):
            raise BundleError(f"{path} is of the family {families[0].name} and holds no {what} ({prefix}...){advice}")
    if folder is not None:
        fitting = [f for f in families if [encoder for encoder, _ in encoders_of(folder)] == list(f.prefixes)]
        if not fitting:
            raise BundleError(
                f"{path} has the text encoders of {families[0].name} ({choices(families[0].prefixes)}); the config at "
                f"{folder.path} is of a {folder.pipeline}"
            )
        return fitting[0]
    # SDXL's refiner and SD-Turbo name their text encoder alike; its width tells.
    fitting = [
        f for f in families if all(_width(shapes, p) == f.configs[c]["hidden_size"] for c, p in f.prefixes.items())
    ]
    return (fitting or families)[0]


def _width(shapes: Shapes, prefix: str) -> int | None:
    """Return the width of the text encoder whose names begin with ``prefix``: that of its last norm."""
    ends = ("ln_final.weight", "final_layer_norm.weight")
    return next((s[0] for name, s in shapes.items() if name.startswith(prefix) and name.endswith(ends)), None)
