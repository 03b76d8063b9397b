"""Small text files that people write: configs and lists of prompts."""

from __future__ import annotations

from pathlib import Path

from rlr_core.errors import UserError, one_line


def read_text(path: str | Path, what: str, most: int, way_out: str = "") -> str:
    """What a file in UTF-8 holds. what: what it should be, for errors; most: bytes.

    Pipes, devices and larger files are refused unread. Raises UserError.
    """
    place = Path(path).expanduser()
    try:
        if place.exists() and not place.is_dir() and not place.is_file():
            raise UserError(f"Cannot read the {what} {str(path)!r}: it is not an ordinary file.")
        if place.is_file() and place.stat().st_size > most:
            raise UserError(
                f"{str(path)!r} is too large to be a {what}: {place.stat().st_size:,} bytes, at most "
                f"{most:,}.{way_out and ' ' + way_out}"
            )
        return place.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: a name with a null character, text that is not UTF-8
        reason = one_line(getattr(error, "strerror", None) or error)
        raise UserError(f"Cannot read the {what} {str(path)!r}: {reason}.") from error
