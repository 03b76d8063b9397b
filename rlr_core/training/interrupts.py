"""Ctrl-C, or whatever else is to stop a run, that waits for the right moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Interrupts:
    """Inside the `with`, the first Ctrl-C is raised by the next `check`, a second one at once.

    Outside the main thread signals cannot be taken over, and Ctrl-C is left as it is.
    """

    def __init__(self, also: Callable[[], None] | None = None) -> None:
        """also: asked by every `check` too; what it raises stops the run."""
        self._also = also
        self._asked = False
        self._previous = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt
        if self._also is not None:
            self._also()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
