"""rlr_core: reward fine-tuning of diffusion models. Reward in, LoRA out.

    import rlr_core as rlr

    model = rlr.load_model("demo")
    reward = rlr.load_reward("demo")
    result = rlr.train(model, reward, rlr.TrainConfig(prompts=["a red circle above a blue square"]))
    result.lora.save("better.safetensors")

Everything below is imported when it is first used, so that `import rlr_core` is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "load_model": "rlr_core.diffusion.models.loading",
    "load_reward": "rlr_core.rewards",
    "train": "rlr_core.training.trainer",
    "TrainResult": "rlr_core.training.trainer",
    "Event": "rlr_core.training.events",
    "TrainConfig": "rlr_core.config",
    "SamplerConfig": "rlr_core.config",
    "MethodConfig": "rlr_core.config",
    "LoraConfig": "rlr_core.config",
    "OptimizerConfig": "rlr_core.config",
    "EvaluationConfig": "rlr_core.config",
    "load_config": "rlr_core.config",
    "apply_lora": "rlr_core.lora.apply",
    "sample": "rlr_core.evaluation.sampling",
    "evaluate": "rlr_core.evaluation.sampling",
    "difference": "rlr_core.evaluation.measures",
    "Reward": "rlr_core.rewards.base",
    "UserError": "rlr_core.errors",
}

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rlr_core' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
