"""edgediff: latent diffusion inside your own program. NumPy and an engine at run time, never torch."""

from __future__ import annotations

from .bundle.manifest import Bundle
from .errors import (
    ArgumentError,
    BundleError,
    BundleNotFoundError,
    EdgediffError,
    EngineError,
    OutputError,
    PromptError,
    PromptWarning,
)
from .image import save
from .pipeline import Pipeline, Result, Step, load
from .sampling.guidance import Apg
from .sampling.planning import Plan, plan
from .sampling.schedule import Schedule
from .sampling.update import Row
from .version import __version__

__all__ = [
    "Apg",
    "ArgumentError",
    "Bundle",
    "BundleError",
    "BundleNotFoundError",
    "EdgediffError",
    "EngineError",
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
