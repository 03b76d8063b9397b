"""LoRA adapters: put into a denoiser (attach), written to and read from files (formats)."""

from rlr_core.lora.attach import Adapter, attach

__all__ = ["Adapter", "attach"]
