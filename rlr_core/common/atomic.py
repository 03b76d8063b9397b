"""The one writer of files: written beside the target, flushed, renamed; whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlr_core.errors import UserError

TEMPORARY = ".writing-"
"""In front of a file's name while it is written."""


@contextmanager
def replacing(target: Path, way_out: str = "Make room and start again.") -> Iterator[Path]:
    """A temporary path to write to; on leaving it takes the target's place, whole, or not at all.

    Raises UserError where the disk is full or refuses; way_out is the end of what it says.
    """
    temporary = target.with_name(TEMPORARY + target.name)
    with disk(target, way_out):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, target)
            _flush(target.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def disk(target: Path, way_out: str = "Choose another place.") -> Iterator[None]:
    """Turn what a disk can refuse into a sentence."""
    try:
        yield
    except Exception as error:
        # Files that safetensors writes report a full disk in their message only.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise UserError(f"The disk is full: {str(target)!r} could not be written. {way_out}") from error
        if isinstance(error, OSError):
            raise UserError(f"Cannot write {str(target)!r}: {error.strerror or error}. {way_out}") from error
        raise


def remove_temporaries(*folders: Path) -> None:
    """Clear folders of what a killed process was writing."""
    for folder in folders:
        for leftover in folder.glob(TEMPORARY + "*"):
            leftover.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows keeps the names itself
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
