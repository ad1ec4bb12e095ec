"""What TensorRT says goes to a log. Imported as ``engine`` is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .installed import module

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = module()


class Log(trt.ILogger):
    """The log keeps the last errors, for messages: the library never prints."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors = [*self.errors[-2:], " ".join(msg.split())]

    def take(self) -> str:
        """Tell what went wrong since the last time."""
        errors, self.errors = self.errors, []
        return "; ".join(errors) or "TensorRT does not say why"
