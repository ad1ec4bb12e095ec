"""The weights that a traced graph names are bound to a component's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgediff.errors import BundleError

from ..weight import Weight
from .attention import HALVES
from .clip_text import INSIDE
from .modules import COMPONENT

Bind = Callable[[str], Weight]
TURNED = ".T"  # ends the name of a weight whose two axes are exchanged


def binder(component: str, weights: Mapping[str, Weight]) -> Bind:
    """Give the function that finds a traced parameter's weight among a component's.

    It knows what this package's modules changed: a name in front, where the layers of a text encoder lie, products
    that were split.
    The function raises ``BundleError`` for a weight that the component lacks.
    """

    def bind(name: str) -> Weight:
        if name.endswith(TURNED):
            return bind(name.removesuffix(TURNED)).transposed
        own = name.removeprefix(COMPONENT)
        for inside in INSIDE:
            if inside + own in weights:
                return weights[inside + own]
        *path, half, kind = own.split(".")
        whole = ".".join([*path, "proj", kind])
        if half in HALVES and whole in weights:
            return weights[whole].half_of_rows(second=half == HALVES[1])
        raise BundleError(f"{component} lacks the weight {own}")

    return bind
