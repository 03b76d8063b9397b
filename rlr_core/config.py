"""Every setting of a run, with its meaning; YAML in and out; checked as a whole before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass


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
