"""edgediff runs latent diffusion inside your own program: NumPy and an engine at run time, never torch.

>>> import edgediff
>>> pipe = edgediff.load()  # the built-in model; or load("path/to/bundle")
>>> image = pipe("a red apple on a blue background", seed=7).images[0]  # a Pillow image
>>> edgediff.save(image, "apple.png")  # prompt, seed and sampler go into the file
"""

from __future__ import annotations

from .bundle.manifest import Bundle
from .engines.isolation.limits import Limits
from .errors import (
    ArgumentError,
    BundleError,
    BundleNotFoundError,
    CopyError,
    DeadlineError,
    EdgediffError,
    EngineError,
    EngineWarning,
    MemoryLimitError,
    MissingAttributeError,
    OutputError,
    PromptError,
    PromptWarning,
)
from .generation.step import Result, Step
from .image import save
from .loading import load
from .pipeline import Pipeline
from .sampling.guidance import Apg
from .sampling.planning import Plan, plan
from .sampling.samplers import SAMPLERS as _TABLE
from .sampling.schedule import SPACINGS, Schedule
from .sampling.update import Row
from .version import __version__

SAMPLERS: tuple[str, ...] = tuple(_TABLE)
"""The names of all samplers; ``SPACINGS`` are those of all spacings."""

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "Apg",
    "ArgumentError",
    "Bundle",
    "BundleError",
    "BundleNotFoundError",
    "CopyError",
    "DeadlineError",
    "EdgediffError",
    "EngineError",
    "EngineWarning",
    "Limits",
    "MemoryLimitError",
    "MissingAttributeError",
    "OutputError",
    "Pipeline",
    "Plan",
    "PromptError",
    "PromptWarning",
    "Result",
    "Row",
    "Schedule",
    "Step",
    "__version__",
    "load",
    "plan",
    "save",
]
