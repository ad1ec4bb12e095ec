"""Samplers as tables of numbers: no files, no engines, no prompts. Usable alone, with any denoiser.

>>> from edgediff.sampling import Schedule, plan
>>> print(plan(Schedule(), "dpmpp_2m", 8, guidance_scale=7.5))
"""

from __future__ import annotations

from .planning import Plan, plan
from .samplers import SAMPLERS
from .schedule import SPACINGS, Level, Schedule
from .update import Row

__all__ = ["SAMPLERS", "SPACINGS", "Level", "Plan", "Row", "Schedule", "plan"]
