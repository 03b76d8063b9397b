"""Configs from and to YAML, dicts and key=value; and whether one run may go on from another's state."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlr_core.common.text_files import read_text
from rlr_core.config.base import shown, unknown
from rlr_core.config.settings import TrainConfig
from rlr_core.errors import UserError, one_line

LARGEST = 8 * 2**20
"""Bytes of a config file; lists of many thousand prompts fit."""
DEEPEST = 32
"""Levels of lists and mappings in each other."""
MOST = 200_000
"""Values in a config, after its anchors have been followed."""

OLD_KEYS = {
    "method.kl": "method.kl_weight",
    "method.clip": "method.clip_range",
    "optimizer.max_norm": "optimizer.max_grad_norm",
    "optimizer.average": "optimizer.ema_decay",
}
"""Names of settings until version 0.1 -> what they are called now; accepted, with a warning, until 0.3."""

_GROUPS = {key.partition(".")[0] for key in TrainConfig.names() if "." in key}


def load_config(path: str | Path) -> TrainConfig:
    """A TrainConfig from a YAML file. Raises UserError for what is not one."""
    text = read_text(path, "config", LARGEST, "Put the prompts into a file of their own.")
    data = _parsed(text, repr(str(path)))
    if not isinstance(data, Mapping):
        raise UserError(f"{str(path)!r} is not a config: expected lines such as 'model: demo'.")
    return config_from_dict(data)


def config_from_dict(data: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from nested mappings; unknown keys and wrong types are a UserError."""
    return TrainConfig.of(_renamed(data))


def save_config(config: TrainConfig) -> str:
    """The config as YAML, defaults and all; `load_config` gives the same back."""
    import yaml

    try:
        return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        value = shown(error.args[-1])
        raise UserError(
            f"A config file cannot hold {value}; use text, numbers, lists and mappings."
        ) from None


def override(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """A config with `key=value` settings applied, nested keys with dots: `sampler.steps=10`."""
    data = config.to_dict()
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{assignment!r} is not a setting: write key=value, such as sampler.steps=10.")
        key = key.strip()
        if key in OLD_KEYS:
            key = _new_name(key)
        _assign(data, key, text)
    return config_from_dict(data)


def state_differences(ours: TrainConfig, theirs: TrainConfig) -> list[str]:
    """Names of the settings in which two configs may not differ if one is to go on from the other's state."""
    left, right = ours.state_settings(), theirs.state_settings()
    return [key for key in left if left[key] != right[key]]


def _parsed(text: str, name: str) -> Any:
    """YAML as plain values. Raises UserError for what is none, or nested or repeated without end."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"{name} is not a config: it is nested too deeply.") from None
    except Exception as error:  # besides YAMLError whatever its readers of dates, numbers and tags run into
        reason = one_line(error, 300) or type(error).__name__
        raise UserError(f"{name} is not YAML: {reason}.") from None
    _refuse_hostile(data, name)
    return data


def _refuse_hostile(data: Any, name: str) -> None:
    """Walk through everything once: anchors may lead to themselves, or to more than any memory holds."""
    places, count = [(data, 0)], 0
    while places:
        value, depth = places.pop()
        count += 1
        if depth > DEEPEST or count > MOST:
            what = "nested too deeply" if depth > DEEPEST else f"more than {MOST:,} values"
            raise UserError(f"{name} is not a config: it is {what}.")
        if isinstance(value, Mapping):
            places += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, (list, tuple, set)):
            places += [(part, depth + 1) for part in value]
        elif isinstance(value, str):
            if "\0" in value or not _is_unicode(value):
                raise UserError(f"{name} is not a config: {shown(value)} is not text.")
        elif isinstance(value, bytes):
            raise UserError(f"{name} is not a config: it holds binary data.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the mappings in which old keys have their new names."""
    data = {
        key: dict(value) if key in _GROUPS and isinstance(value, Mapping) else value
        for key, value in data.items()
    }
    for old, new in OLD_KEYS.items():
        group, _, name = old.rpartition(".")
        place = data.get(group)
        if not isinstance(place, dict) or name not in place:
            continue
        if new.rpartition(".")[2] in place:
            raise UserError(f"{old!r} is the old name of {new!r}, which is set too: leave it out.")
        place[_new_name(old).rpartition(".")[2]] = place.pop(name)
    return data


def _new_name(old: str) -> str:
    logging.getLogger(__name__).warning("Setting %r is called %r now.", old, OLD_KEYS[old])
    return OLD_KEYS[old]


def _assign(data: dict[str, Any], key: str, text: str) -> None:
    """Put the value that `text` means in its place in a config's nested dicts."""
    try:
        value = _parsed(text, repr(key))
    except UserError:
        value = text
    *path, last = key.split(".")
    place: Any = data
    for name in path:
        place = place.get(name)
        if not isinstance(place, dict):
            raise UserError(unknown(key, TrainConfig.names()))
    if last not in place and not (path and path[-1].endswith("_options")):
        raise UserError(unknown(key, TrainConfig.names()))
    if key == "method" and isinstance(value, str):
        data["method"]["name"] = value
    elif isinstance(place.get(last), str) and not isinstance(value, (str, list, dict)):
        place[last] = text.strip()  # out=2024 is a name, and nothing is an empty text
    else:
        place[last] = value
