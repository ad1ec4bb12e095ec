"""Whether this machine has a GPU, for tests that need one or none."""

from __future__ import annotations

from edgediff.device import driver
from edgediff.errors import EngineError


def has_driver() -> bool:
    """Whether NVIDIA's driver is here, with a GPU."""
    try:
        driver.probe()
    except EngineError:
        return False
    return True
