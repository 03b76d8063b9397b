"""LoRA adapters: put into a denoiser (attach), written to and read from files (formats, apply)."""

from rlr_core.lora.apply import apply_lora
from rlr_core.lora.attach import Adapter, attach
from rlr_core.lora.formats import load_lora, save_lora

__all__ = ["Adapter", "apply_lora", "attach", "load_lora", "save_lora"]
