"""Settings of a run: what there is (settings), from and to files (load), what can work (validate)."""

from rlr_core.config.settings import (
    EvaluationConfig,
    LoraConfig,
    MethodConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
    config_from_dict,
    load_config,
    override,
    save_config,
    state_differences,
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
