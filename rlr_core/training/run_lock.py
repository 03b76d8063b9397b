"""One run folder has one writer: a lock that is gone when its process is, however that ended."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rlr_core.errors import UserError

LOCK, OWNER = ".lock", ".owner"
"""The file that is locked, and the one that says who by. Both stay behind; neither means anything alone."""


class RunLock:
    """Held from `acquire` until `release`, or until the process ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = FileLock(folder / LOCK, timeout=0)

    def acquire(self) -> None:
        """Take the folder. Raises UserError that says who has it."""
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                f"The run folder {str(self.folder)!r} is being written by {self._owner()}: wait for that run "
                "to end, stop it, or choose another --out."
            ) from None
        except NotImplementedError:
            return  # a file system that knows no locks: nothing is promised there
        with suppress(OSError):
            (self.folder / OWNER).write_text(_myself(), "utf-8")

    def release(self) -> None:
        """Let others write."""
        self._lock.release()

    def _owner(self) -> str:
        """Who has it, as far as it is written down."""
        with suppress(OSError, UnicodeDecodeError):
            words = " ".join((self.folder / OWNER).read_text("utf-8")[:200].split())
            if words:
                return "this process" if words == _myself() else words
        return "another process"


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
