"""The LoRA beside a frozen layer: no part of the network, which keeps its paths, state_dict and patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlr_core.diffusion.models.down_projection import DownProjection
from rlr_core.diffusion.models.peft_layers import ADAPTER


class NativeLora(nn.Module):
    """What a LoRA adds to a linear layer's output: strength * alpha / rank * B A x, in float32.

    Has what the engine asks of an adapter's layer: `lora_A[ADAPTER]`, `lora_B[ADAPTER]`,
    `lora_alpha[ADAPTER]`, `_disable_adapters` and `set_scale`.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, device: torch.device):
        super().__init__()
        down = DownProjection(inputs, rank, bias=False, device=device, dtype=torch.float32)
        up = nn.Linear(rank, outputs, bias=False, device=device, dtype=torch.float32)
        self.lora_A = nn.ModuleDict({ADAPTER: down})
        self.lora_B = nn.ModuleDict({ADAPTER: up})
        self.lora_alpha = {ADAPTER: alpha}
        self.scaling = {ADAPTER: alpha / rank}
        self.rank = rank
        self._disable_adapters = False

    def set_scale(self, name: str, strength: float) -> None:
        """strength: 1 as trained, 0 the base model."""
        self.scaling[name] = strength * self.lora_alpha[name] / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] in any type -> [..., outputs] float32."""
        return self.lora_B[ADAPTER](self.lora_A[ADAPTER](x)) * self.scaling[ADAPTER]
