"""Every setting of a run, with its meaning; YAML in and out. `checks.py` says which values can work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlr_core.errors import UserError, nearest


@dataclass
class SamplerConfig:
    """How pictures are sampled, in training as in `rlr sample`."""

    kernel: str = "auto"
    """Which Gaussian step: ddim (eps and v models), flow_ddim, flow_grpo, dance (flow models), or auto."""
    steps: int = 20
    """Number of denoising steps T, at least 2."""
    eta: float = 1.0
    """How much noise each step adds: 0 none (no likelihood ratio then), 1 as much as DDPM."""
    guidance: float = 5.0
    """Classifier-free guidance scale; 1 turns guidance off and halves the cost."""
    negative_prompt: str = ""
    """What guidance steers away from."""
    last_step_noise: float = 0.0
    """Noise added to the last step, so that black-box rewards reach it too (0.05 is plenty)."""
    height: int | None = None
    """Picture height in pixels; None takes what the model was made for."""
    width: int | None = None
    """Picture width in pixels; None takes what the model was made for."""
    stage_boundaries: list[float] | None = None
    """Where prompt stages change, as shares of the chain counted from the noise; None divides it evenly."""


@dataclass
class MethodConfig:
    """How the gradient is estimated: one row of `rlr list methods` and its settings."""

    name: str = "adaptive"
    """A row of `rlr_core.methods.METHODS`; rlr is the paper's."""
    depth: int = 1
    """truncated: how many last steps are back-propagated through (K)."""
    random_depth: bool = False
    """truncated: draw the depth from 1..T once per trajectory instead, as AlignProp does."""
    window: int = 2
    """rlr: length h of the half-order sub-chain, 1..T-1."""
    start: str = "uniform"
    """rlr: law of the window's first step j: uniform, gradient_norm (softmax of running norms) or range."""
    start_range: list[int] | None = None
    """rlr with start: range: the first and last j allowed, counted from the picture."""
    remainder: str = "zeroth_order"
    """rlr: what covers the other steps: zeroth_order (the paper), likelihood_ratio, importance, or none."""
    perturbation: float = 0.01
    """rlr and zeroth_order: standard deviation of the noise on the adapter's weights."""
    perturbations: int = 1
    """rlr and zeroth_order: how many perturbations an update draws; the batch is shared out among them."""
    budget: float = 0.5
    """adaptive: share of the chain that is walked back, on average over random depths; 1 walks all of it."""
    surrogate: bool = True
    """adaptive: with a black-box reward that has a differentiable stand-in, use it to lower the noise."""
    clip_range: float = 0.2
    """ddpo: PPO's clip of the likelihood ratio."""
    inner_epochs: int = 2
    """ddpo: optimiser steps per rollout."""
    advantage: str = "leave_one_out"
    """Baseline: leave_one_out (of the same prompt), z_score (divided by its deviation too), running_mean."""
    kl_weight: float = 0.0
    """Weight beta of the exact KL divergence to the base model."""


@dataclass
class LoraConfig:
    """The adapter."""

    rank: int = 8
    """Rank of every low-rank update."""
    alpha: float | None = None
    """The update is scaled by alpha / rank; None takes alpha = rank."""
    targets: str = "attention"
    """What is adapted: attention, attention+ff, or all (every linear layer)."""
    text_encoder: bool = False
    """Whether the text encoder is adapted too: what prompts mean is then trained along with the pictures."""


@dataclass
class OptimizerConfig:
    """The optimiser and its learning rate."""

    name: str = "adamw"
    """adamw, or adamw8bit where bitsandbytes is installed."""
    learning_rate: float = 3e-4
    """Peak learning rate."""
    warmup: int = 5
    """Updates over which the learning rate rises from 0."""
    schedule: str = "constant"
    """After the warm-up: constant, linear or cosine (down to 0 at the last update)."""
    beta1: float = 0.9
    """Adam's decay of the gradient's mean."""
    beta2: float = 0.99
    """Adam's decay of the gradient's square; short runs want it shorter than the usual 0.999."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the adapter."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them as they are."""
    ema_decay: float = 0.0
    """Decay of the running average of the adapter's weights that is evaluated and saved; 0 saves the last."""


@dataclass
class EvaluationConfig:
    """What is watched while training, on prompts and seeds that training never sees."""

    judge: str | None = None
    """A second reward that training does not follow; the training reward when None."""
    judge_options: dict[str, Any] = field(default_factory=dict)
    """Options of the judge, such as weights."""
    prompts: Any = None
    """Held-out prompts: a list or a file; None takes the training prompts with other seeds."""
    samples: int = 32
    """Pictures per evaluation."""
    every: int = 10
    """Updates between evaluations; there is always one before the first update and one after the last."""
    batch: int = 8
    """Pictures sampled at a time in an evaluation."""
    stop_when_judge_drops: bool = False
    """Stop when the judge has fallen significantly below its best, and keep the adapter of the best."""


@dataclass
class TrainConfig:
    """A whole run. `rlr train run.yaml key=value ...` sets any field; nested ones with dots."""

    model: str = "demo"
    """demo, a diffusers folder, or a checkpoint file."""
    dtype: str | None = None
    """Type of the frozen weights: bf16, fp16 or fp32; None chooses by device."""
    device: str | None = None
    """cuda, cpu, ...; None chooses."""
    reward: str = "demo"
    """The reward that is maximised; `rlr list rewards`."""
    reward_options: dict[str, Any] = field(default_factory=dict)
    """Options of the reward, such as weights."""
    prompts: Any = None
    """A list of prompts, a file with one a line, or a list of stage lists (coarse to fine)."""
    steps: int = 100
    """Updates."""
    batch: int = 16
    """Trajectories per update, over all devices."""
    samples_per_prompt: int = 4
    """Trajectories of one prompt in a batch; their mean is each other's baseline."""
    micro_batch: int = 4
    """Trajectories on a device at a time; lower it when memory runs out. The estimate stays as good."""
    decode_batch: int = 1
    """Pictures decoded and scored at a time."""
    gradient_checkpointing: bool = False
    """Recompute activations inside a step: a third slower, much less memory."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "runs/run"
    """The run folder."""
    save_every: int = 5
    """Updates between saved states."""
    keep_samples: int = 8
    """Held-out pictures kept for before_after.png and samples/."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How pictures are sampled."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """How the gradient is estimated; a plain name stands for a method with its defaults."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The adapter."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The held-out judge."""

    def __post_init__(self) -> None:
        for name in ("model", "out", "prompts"):
            if isinstance(getattr(self, name), os.PathLike):
                setattr(self, name, os.fspath(getattr(self, name)))
        if isinstance(self.method, str):
            self.method = MethodConfig(name=self.method)
        for name, kind in _SECTIONS.items():
            value = getattr(self, name)
            if isinstance(value, Mapping):
                setattr(self, name, _from_mapping(kind, value, f"{name}."))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, defaults and all."""
        return _plain(dataclasses.asdict(self))

    def fingerprint(self) -> str:
        """Hash of what a saved state depends on; a state goes on only under the same fingerprint."""
        text = json.dumps(_state_settings(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


_SECTIONS = {
    "sampler": SamplerConfig,
    "method": MethodConfig,
    "lora": LoraConfig,
    "optimizer": OptimizerConfig,
    "evaluation": EvaluationConfig,
}

NOT_IN_STATE = (
    "steps", "out", "device", "save_every", "keep_samples", "decode_batch", "micro_batch",
    "gradient_checkpointing", "evaluation.batch",
)  # fmt: skip
"""Settings that may change when a run goes on: how long, where, and how it is cut into pieces."""


# --- YAML, dicts and key=value ---


def load_config(path: str | Path) -> TrainConfig:
    """A TrainConfig from a YAML file. Raises UserError for what is not one."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(f"Cannot read the config {str(path)!r}: {reason}.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, Mapping):
        raise UserError(f"{str(path)!r} is not a config: expected lines such as 'model: demo'.")
    return config_from_dict(data)


def config_from_dict(data: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from nested mappings; unknown keys and wrong types are a UserError."""
    return _from_mapping(TrainConfig, data, "")


def save_config(config: TrainConfig) -> str:
    """The config as YAML, defaults and all; `load_config` gives the same back."""
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)


def override(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """A config with `key=value` settings applied, nested keys with dots: `sampler.steps=10`."""
    import yaml

    data = config.to_dict()
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"{assignment!r} is not a setting: write key=value, such as sampler.steps=10.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        *path, last = key.strip().split(".")
        place: Any = data
        for name in path:
            place = place.get(name) if isinstance(place, Mapping) else None
            if not isinstance(place, Mapping):
                raise UserError(_unknown(key, _keys(data)))
        free = bool(path) and path[-1].endswith("_options")
        if last not in place and not free:
            raise UserError(_unknown(key, _keys(data)))
        if not path and last == "method" and isinstance(value, str):
            place["method"]["name"] = value
        elif isinstance(place.get(last), str) and not isinstance(value, (str, list, dict)):
            place[last] = text.strip()  # out=2024 is a name, and nothing is an empty text
        else:
            place[last] = value
    return config_from_dict(data)


def _from_mapping(kind: type, data: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in data.items():
        if key not in hints:
            known = [f"{prefix}{name}" for name in hints]
            if not prefix:
                known += _keys(TrainConfig().to_dict())
            raise UserError(_unknown(f"{prefix}{key}", known))
        if dataclasses.is_dataclass(hints[key]):
            if key == "method" and isinstance(value, str):
                value = {"name": value}
            if dataclasses.is_dataclass(value):
                value = dataclasses.asdict(value)
            if not isinstance(value, Mapping):
                raise UserError(f"{prefix}{key} must hold settings of its own, not {value!r}.")
            values[key] = _from_mapping(hints[key], value, f"{prefix}{key}.")
        else:
            values[key] = _typed(value, hints[key], f"{prefix}{key}")
    return kind(**values)


def _typed(value: Any, hint: Any, key: str) -> Any:
    """`value` as the field's type; integers pass as floats, '3e-4' as a number."""
    if hint is Any:
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                continue
            if math.isfinite(number):
                return number
        if origin is bool and isinstance(value, bool):
            return value
        if origin is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if origin is str and isinstance(value, str):
            return value
        if origin is list and isinstance(value, (list, tuple)):
            inner = (typing.get_args(option) or (Any,))[0]
            return [_typed(item, inner, key) for item in value]
        if origin is dict and isinstance(value, Mapping):
            return dict(value)
    names = " or ".join(_KINDS[typing.get_origin(option) or option] for option in options)
    raise UserError(f"{key} must be {names}, not {value!r}.")


_KINDS = {
    str: "text", int: "a whole number", float: "a finite number", bool: "true or false", list: "a list",
    dict: "settings", type(None): "null",
}  # fmt: skip


def _unknown(key: str, known: list[str]) -> str:
    inside = [name for name in known if name.endswith(f".{key}")]
    hint = f" Did you mean {inside[0]!r}?" if inside else nearest(key, known)
    return f"Unknown setting {key!r}.{hint or ' Known here: ' + ', '.join(known) + '.'}"


def _keys(data: Mapping[str, Any]) -> list[str]:
    """Names of all settings, with dots."""
    names = []
    for key, value in data.items():
        names += [f"{key}.{name}" for name in value] if key in _SECTIONS else [key]
    return names


def _plain(value: Any) -> Any:
    """Settings as YAML knows them: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _state_settings(config: TrainConfig) -> dict[str, Any]:
    data = config.to_dict()
    for name in NOT_IN_STATE:
        section, _, key = name.rpartition(".")
        (data[section] if section else data).pop(key)
    return data


def state_differences(ours: TrainConfig, theirs: TrainConfig) -> list[str]:
    """Names of the settings in which two configs may not differ if one is to go on from the other's state."""

    def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in data.items():
            if isinstance(value, Mapping) and prefix + key in _SECTIONS:
                items |= flat(value, f"{prefix}{key}.")
            else:
                items[prefix + key] = value
        return items

    left, right = flat(_state_settings(ours)), flat(_state_settings(theirs))
    return [key for key in left if left[key] != right[key]]
