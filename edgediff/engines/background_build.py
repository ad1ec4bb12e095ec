"""A background build makes engine files of several parts in a thread, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ..bundle.manifest import Bundle
from ..errors import EngineError
from .base import EngineOptions
from .tensorrt.backend import engine_files
from .tensorrt.build import COMMAND, build_part
from .tensorrt.cache import EngineCache
from .tensorrt.child import Progress
from .tensorrt.installed import building_platform
from .tensorrt.options import BuildOptions


class Build:
    """A build makes engine files of several parts, one after the other in a thread; each is told of when it is ready.

    Args:
        parts: whose.
        one: builds a part: (part, progress, cancel).
        ready: called in the thread with each part that was built.
    """

    def __init__(
        self,
        parts: Sequence[str],
        one: Callable[[str, Progress, threading.Event], object],
        ready: Callable[[str], None],
    ) -> None:
        self.parts = tuple(parts)
        self.errors: dict[str, EngineError] = {}
        self._shares = dict.fromkeys(parts, 0.0)
        self._one, self._ready, self._cancel = one, ready, threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgediff-build", daemon=True)
        self._thread.start()

    @property
    def share(self) -> float:
        """Return the share of the work that is done, 0 .. 1; parts count alike."""
        return sum(self._shares.values()) / max(1, len(self._shares))

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def cancel(self) -> None:
        """Stop building; engine files that are ready stay."""
        self._cancel.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all is built, failed or cancelled; False when that took longer than ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self.running

    def _run(self) -> None:
        for part in self.parts:
            try:
                self._one(part, self._progress, self._cancel)
                self._ready(part)
            except EngineError as error:
                self.errors[part] = error
            except Exception as error:
                self.errors[part] = EngineError(f"{part}: the build failed: {type(error).__name__}: {error}")
            self._shares[part] = 1.0
            if self._cancel.is_set():
                return

    def _progress(self, part: str, share: float, phase: str) -> None:
        self._shares[part] = share


def build_missing(
    bundle: Bundle,
    ordinal: int,
    options: EngineOptions,
    ready: Callable[[str], None],
    build_options: BuildOptions | None = None,
    command: Sequence[str] | None = None,
) -> Build | None:
    """Begin to build the engine files of the parts that a call needs and that have none for this GPU, the U-Net's
    first.

    Args:
        bundle: whose parts.
        ordinal: of the CUDA device.
        options: where the engine cache is.
        ready: called in the thread with each part that was built.
        build_options: how; the defaults when None.
        command: the child that builds.

    Returns:
        The build; None where nothing is missing.
    """

    def one(part: str, progress: Progress, cancel: threading.Event) -> None:
        build_part(
            bundle,
            part,
            build_options or BuildOptions(),
            building_platform(ordinal),
            EngineCache(options.cache_folder()),
            ordinal,
            progress=progress,
            cancel=cancel,
            background=True,
            command=command or COMMAND,
        )

    def is_built(part: str) -> bool:
        try:
            return bool(engine_files(bundle, part, options, ordinal)[0])
        except EngineError:
            return False  # building will say why there can be none

    parts = dict.fromkeys(("unet", *bundle.needed))
    missing = [part for part in parts if not is_built(part)]
    return Build(missing, one, ready) if missing else None
