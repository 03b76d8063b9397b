"""Names from workflows as paths: inside a given folder, or refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

from rlr_core.errors import UserError

LONGEST = 120
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps


def inside(base: str | Path, name: str) -> Path:
    """base / name, for a relative name whose parts are plain. Raises UserError where it would lead outside.

    Links in the folder itself are followed: a person may have put output/ on another disk.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    if not parts or len(name) > LONGEST or len(parts) > 4 or name.startswith(("/", "\\", "~")):
        raise _refusal(name)
    for part in parts:
        hidden = part.startswith(".") or part != part.strip(" .")
        if hidden or _FORBIDDEN.search(part) or _RESERVED.fullmatch(part):
            raise _refusal(name)
    base = Path(base).resolve()
    path = base.joinpath(*parts).resolve()
    if not path.is_relative_to(base):
        raise _refusal(name)
    return path


def _refusal(name: str) -> UserError:
    return UserError(
        f"{name[:LONGEST]!r} cannot be used as a name: use letters, digits, spaces, '-', '_' and '.', at "
        f"most {LONGEST} of them, with '/' between a folder and a name."
    )
