"""rlr_core: reward fine-tuning of diffusion models. Reward in, LoRA out."""

__version__ = "0.1.0"
