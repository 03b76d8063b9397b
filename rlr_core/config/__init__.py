"""Settings of a run: what there is (settings), from and to files (load), what goes together (validate)."""

from rlr_core.config.load import config_from_dict, load_config, override, save_config, state_differences
from rlr_core.config.settings import (
    EvaluationConfig,
    LoraConfig,
    MethodConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
)

__all__ = [
    "EvaluationConfig",
    "LoraConfig",
    "MethodConfig",
    "OptimizerConfig",
    "SamplerConfig",
    "TrainConfig",
    "config_from_dict",
    "load_config",
    "override",
    "save_config",
    "state_differences",
]
