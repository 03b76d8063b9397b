"""Where RLR Reward gets what is no single file: folders of models, a text encoder, a server.

A workflow may come from a stranger, and is not to say where pictures are sent: a server is asked only where
it runs on this machine, or where whoever runs ComfyUI has allowed its host.
"""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.parse
from pathlib import Path

import folder_paths

from rlr_core.errors import UserError

from .host import REWARD_FOLDERS

HOSTS_VARIABLE = "RLR_HTTP_REWARD_HOSTS"
"""Hosts, separated by commas, that the reward `http` may send pictures to beside this machine."""
_PLAIN_PLACE = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?", re.IGNORECASE | re.ASCII)
"""A host, perhaps with a port: no user name in front of it, and nothing that programs read differently."""


def model_folders() -> list[str]:
    """Folders of models/reward_models in the layout of transformers."""
    return list(_folders())


def model_folder_path(name: str) -> str:
    """The path of a name of `model_folders`. Raises UserError for any other."""
    path = _folders().get(name)
    if path is None:
        raise UserError(f"There is no model folder {name[:200]!r} in ComfyUI's {REWARD_FOLDERS[0]} folder.")
    return str(path)


def _folders() -> dict[str, Path]:
    """Name -> folder with a config.json."""
    found: dict[str, Path] = {}
    for base in map(Path, folder_paths.get_folder_paths(REWARD_FOLDERS[0])):
        for config in sorted(base.glob("*/config.json")):
            found.setdefault(config.parent.name, config.parent)
    return found


def refused(address: str) -> str:
    """Why pictures are not sent to an address that a workflow names; '' where they may be."""
    parts = urllib.parse.urlsplit(address.strip()) if _splits(address) else None
    if parts is None or parts.scheme not in ("http", "https") or not _PLAIN_PLACE.fullmatch(parts.netloc):
        return (
            f"the address of the reward http is {address[:200]!r}: write that of a server, such as "
            "http://127.0.0.1:11434/v1."
        )
    name = (parts.hostname or "").lower()
    if _is_here(name) or name in _allowed():
        return ""
    return (
        f"The reward http would send pictures to {name}, which is another machine: if you want that, start "
        f"ComfyUI with {HOSTS_VARIABLE}={name} in its environment, or write the address of a server on "
        "this one."
    )


def _splits(address: str) -> bool:
    try:
        urllib.parse.urlsplit(address.strip())
    except ValueError:
        return False
    return True


def _is_here(name: str) -> bool:
    """Whether a host is this machine, by its name: nobody is asked."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _allowed() -> set[str]:
    return {part.strip().lower() for part in os.environ.get(HOSTS_VARIABLE, "").split(",") if part.strip()}
