"""One typed signature for every method that takes the arguments of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from ..errors import ArgumentError
from .arguments import Arguments
from .elsewhere import check_names

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def takes_arguments(
    made: Callable[P, Arguments],
) -> Callable[[Callable[[S, Arguments], T]], Callable[Concatenate[S, P], T]]:
    """Give a method of one ``Arguments`` the signature and documentation of its fields.

    Raises (the method, before any work):
        ArgumentError: an argument of another name, or a second one without a name.
    """

    def decorate(method: Callable[[S, Arguments], T]) -> Callable[Concatenate[S, P], T]:
        @wraps(method)
        def called(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
            check_names(kwargs)
            if len(args) > 1:
                raise ArgumentError(f"{len(args)} arguments have no name; only the prompt goes without one")
            return method(self, made(*args, **kwargs))

        own, taken = inspect.signature(method), inspect.signature(made)
        first = next(iter(own.parameters.values()))
        called.__signature__ = taken.replace(  # type: ignore[attr-defined]
            parameters=[first, *taken.parameters.values()], return_annotation=own.return_annotation
        )
        called.__annotations__ = {
            **{name: p.annotation for name, p in taken.parameters.items()},
            "return": own.return_annotation,
        }
        called.__doc__ = (method.__doc__ or "").replace("ARGUMENTS\n", _described())
        return called

    return decorate


def _described() -> str:
    """The section ``Args`` of ``Arguments``, indented as a method's docstring is."""
    _, _, section = (Arguments.__doc__ or "").partition("    Args:\n")
    lines = section.rstrip().splitlines()
    return "Args:\n" + "".join(f"    {line}\n" for line in lines)
