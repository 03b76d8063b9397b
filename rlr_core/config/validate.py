"""Refuse a config that cannot run, as a whole and before anything is loaded."""

from __future__ import annotations

from rlr_core.config import TrainConfig
from rlr_core.errors import UserError, nearest


def check_values(config: TrainConfig) -> None:
    """Refuse, before anything is loaded, what cannot run. Raises UserError with the value and the way out."""
    method, sampler = config.method, config.sampler
    if sampler.steps < 2:
        raise UserError(f"sampler.steps is {sampler.steps}; a chain needs at least 2 steps.")
    _one_of("sampler.kernel", sampler.kernel, ("auto", "ddim", "flow_ddim", "flow_grpo", "dance"))
    _one_of("method.start", method.start, ("uniform", "gradient_norm", "range"))
    _one_of("method.remainder", method.remainder, ("zeroth_order", "likelihood_ratio", "importance", "none"))
    _one_of("method.advantage", method.advantage, ("leave_one_out", "z_score", "running_mean"))
    _one_of("lora.targets", config.lora.targets, ("attention", "attention+ff", "all"))
    _one_of("optimizer.name", config.optimizer.name, ("adamw", "adamw8bit"))
    _one_of("optimizer.schedule", config.optimizer.schedule, ("constant", "linear", "cosine"))
    for key, value, low, high in (
        ("steps", config.steps, 1, None),
        ("batch", config.batch, 1, None),
        ("micro_batch", config.micro_batch, 1, None),
        ("decode_batch", config.decode_batch, 1, None),
        ("samples_per_prompt", config.samples_per_prompt, 1, None),
        ("save_every", config.save_every, 1, None),
        ("keep_samples", config.keep_samples, 1, None),
        ("evaluation.samples", config.evaluation.samples, 2, None),
        ("evaluation.every", config.evaluation.every, 1, None),
        ("evaluation.batch", config.evaluation.batch, 1, None),
        ("seed", config.seed, 0, 2**63 - 1),
        ("sampler.guidance", sampler.guidance, 0, None),
        ("sampler.eta", sampler.eta, 0, 2),
        ("sampler.last_step_noise", sampler.last_step_noise, 0, 1),
        ("method.perturbations", method.perturbations, 1, config.batch),
        ("method.inner_epochs", method.inner_epochs, 1, None),
        ("method.kl_weight", method.kl_weight, 0, None),
        ("method.clip_range", method.clip_range, 1e-6, 1),
        ("method.perturbation", method.perturbation, 1e-8, None),
        ("method.budget", method.budget, 1 / sampler.steps, 1),
        ("sampler.height", sampler.height or 1, 1, None),
        ("sampler.width", sampler.width or 1, 1, None),
        ("lora.rank", config.lora.rank, 1, None),
        ("lora.alpha", config.lora.rank if config.lora.alpha is None else config.lora.alpha, 1e-6, None),
        ("optimizer.ema_decay", config.optimizer.ema_decay, 0, 0.9999),
        ("optimizer.learning_rate", config.optimizer.learning_rate, 1e-12, 1),
        ("optimizer.max_grad_norm", config.optimizer.max_grad_norm, 0, None),
        ("optimizer.warmup", config.optimizer.warmup, 0, None),
        ("optimizer.beta1", config.optimizer.beta1, 0, 0.9999),
        ("optimizer.beta2", config.optimizer.beta2, 0, 0.999999),
        ("optimizer.weight_decay", config.optimizer.weight_decay, 0, None),
    ):
        if not value >= low or (high is not None and not value <= high):
            limit = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise UserError(f"{key} is {value}; it must be {limit}.")
    boundaries = sampler.stage_boundaries or []
    if any(not low < high for low, high in zip([0, *boundaries], [*boundaries, 1], strict=True)):
        raise UserError(f"sampler.stage_boundaries is {boundaries}; it must rise between 0 and 1.")
    if config.batch % config.samples_per_prompt:
        raise UserError(
            f"batch {config.batch} is not a multiple of samples_per_prompt {config.samples_per_prompt}."
        )


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = nearest(value, allowed)
        raise UserError(f"{key} is {value!r}; it must be one of {', '.join(allowed)}.{hint}")
