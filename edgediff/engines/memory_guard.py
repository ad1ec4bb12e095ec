"""A call that cannot fit in memory is refused before it begins, with the nearest that does.

What is refused cannot fit; what is let through may still fail, by a typed error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..bundle.manifest import Bundle
from ..errors import MemoryLimitError, shown
from ..system_memory import free_memory
from .memory import Demand, Resident, estimate

MOST = 10**15  # bytes; a larger number says nothing more
MANY = 10**9  # images; no memory holds as many


def check_memory(bundle: Bundle, demand: Demand, resident: Resident, limit: int | None) -> None:
    """Refuse a call that takes more than there is, or than ``limit`` bytes where it is given.

    What is open and what engines keep from earlier calls is not asked for again of the system, and counts to the limit.

    Raises:
        MemoryLimitError: the message holds the estimate, what there is, and the nearest size and number that fit.
    """
    free, one = free_memory(swap=True), resident.one_at_a_time

    def short(asked: Demand) -> tuple[int, str] | None:
        """What is needed and what there is in its place, where that is less."""
        found = estimate(bundle, asked, resident)
        if limit is not None and (total := found.total(one)) > limit:
            return total, f"memory_limit is {amount(limit)}"
        if free is not None and (more := found.beyond(resident.opened, resident.held).total(one)) > free:
            return more, f"{amount(free)} are free"
        return None

    if (lacking := short(demand)) is None:
        return
    needed, there = lacking
    found = estimate(bundle, demand, resident)
    shares = {name: part.weights + part.activations for name, part in found.parts.items()} | {"arrays": found.arrays}
    most = sorted(((size, name) for name, size in shares.items()), reverse=True)[:2]
    raise MemoryLimitError(
        f"{_named(demand)} at least {amount(needed)} of memory "
        f"({', '.join(f'{name} {amount(size)}' for size, name in most)}), and {there}; "
        f"{_nearest(bundle, demand, lambda asked: short(asked) is None)}"
    )


def _nearest(bundle: Bundle, demand: Demand, fits: Callable[[Demand], bool]) -> str:
    """Which size and which number of images fit: the largest of the same proportions, and the largest number."""
    ways = []
    if demand.images > 1:
        count = _largest(min(demand.images - 1, MANY), lambda n: fits(replace(demand, images=n)))
        ways += [f"{count} image{'s' if count > 1 else ''} of this size"] if count else []
    if bundle.fixed_size == (None, None):
        unit = bundle.latent.size_multiple
        across, down = demand.width // unit, demand.height // unit
        longest = max(across, down)

        def scaled(part: int) -> Demand:
            width, height = (max(1, side * part // longest) * unit for side in (across, down))
            return replace(demand, width=width, height=height)

        part = _largest(longest - 1, lambda part: fits(scaled(part)))
        ways += [f"{scaled(part).width}x{scaled(part).height}"] if part else []
    return f"{' or '.join(ways)} may fit" if ways else "not even a small picture fits"


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``most`` that fits, where fewer take less; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _named(demand: Demand) -> str:
    size = f"{demand.width}x{demand.height}{' with guidance' if demand.guided else ''}"
    return f"a picture of {size} takes" if demand.images == 1 else f"{shown(demand.images)} pictures of {size} take"


def amount(size: int) -> str:
    """Bytes as people read them, ``1.2 GB``; of more than a million GB so many."""
    if size < 10**9:
        return f"{size / 1e6:.0f} MB"
    return f"{min(size, MOST) / 1e9:{'.1f' if size < 10**11 else ',.0f'}} GB"
