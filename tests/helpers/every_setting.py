"""A config that shares no value with the defaults."""

from rlr_core.config import TrainConfig


def every_setting():
    """A config in which no setting has its default."""
    odd = {
        "reward_options": {"weights": "~/a b.safetensors", "layers": [1, 2.5, None, True]},
        "judge_options": {"a": {"b": []}},
        "prompts": ["no", "1e-5", "null", "- a: #b", "é ☃ \n two lines", ["coarse", "fine"]],
        "stage_boundaries": [0.5],
        "start_range": [2, 3],
    }
    config = TrainConfig()
    for known in TrainConfig.settings():
        group, _, name = known.key.rpartition(".")
        kind = known.types[0]
        if name in odd:
            value = odd[name]
        elif known.choices:
            value = next(choice for choice in known.choices if choice != known.default)
        elif kind is bool:
            value = not known.default
        elif kind is str:
            value = "2024"
        elif kind is float:
            value = 0.123456789 if known.default is not None else 1e-5
        else:
            value = (known.default or 0) + 1
        setattr(getattr(config, group) if group else config, name, value)
    return config
