"""Ready-made configs."""

from __future__ import annotations

from pathlib import Path

from rlr_core.config import EvaluationConfig, MethodConfig, OptimizerConfig, SamplerConfig, TrainConfig


def demo_config(out: str | Path = "runs/demo", seed: int = 0) -> TrainConfig:
    """What `rlr demo` runs: the built-in model, minutes on two CPU cores.

    It trains on the demo reward and is judged on captions whose pairs of shapes training never sees.
    """
    from rlr_core.demo.scenes import held_out_prompts, training_prompts

    return TrainConfig(
        model="demo",
        reward="demo",
        prompts=training_prompts(),
        steps=32,
        batch=16,
        samples_per_prompt=4,
        micro_batch=16,
        decode_batch=16,
        seed=seed,
        out=str(out),
        save_every=5,
        keep_samples=48,
        sampler=SamplerConfig(steps=6, eta=0.7, guidance=3.0),
        method=MethodConfig(name="auto", budget=0.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup=5, max_grad_norm=0.1, ema_decay=0.9),
        evaluation=EvaluationConfig(
            judge="judge", prompts=held_out_prompts(), samples=384, every=16, batch=64
        ),
    )
