"""Wan 2.2 A14B, text to video: a diffusers folder with two transformers, for much noise and for little."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlr_core.diffusion.models import folders, peft_layers
from rlr_core.diffusion.models.base import Rows
from rlr_core.diffusion.models.flow_transformer import ROOM
from rlr_core.diffusion.models.turns import Turns
from rlr_core.diffusion.models.wan import Wan, check_text_to_video
from rlr_core.errors import UserError

TRAINING_TIMESTEPS = 1000


class WanTwoDenoisers(Wan):
    """Wan with one transformer down to a noise level and another one from there to the video.

    Where the card has no room for both, one at a time is on it: a rollout changes over once, and so does the
    way back.
    """

    family = "wan-2.2-a14b"
    denoisers = ("transformer", "transformer_2")

    def __init__(self, *, transformer_2: Any, **parts: Any):
        super().__init__(**parts)
        second = transformer_2.requires_grad_(False).eval()
        self.networks["transformer_2"] = second
        timesteps = self.scheduler_config.get("num_train_timesteps", TRAINING_TIMESTEPS)
        self.boundary = self.index["boundary_ratio"] * timesteps
        self.turns: Turns | None = None
        self.quantized = any(getattr(n, "is_quantized", False) for n in self.networks.values())
        if self.quantized or self._has_room_for(second):
            second.to(self.device)
        else:
            self.take_turns()

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return (
            path.is_dir()
            and folders.pipeline_class(path) == cls.pipeline
            and folders.index(path).get("boundary_ratio") is not None
        )

    @classmethod
    def load(
        cls, path: Path, device: torch.device, dtype: torch.dtype, bits: int | None = None
    ) -> WanTwoDenoisers:
        ratio = folders.index(path)["boundary_ratio"]
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise UserError(
                f"boundary_ratio in {path / folders.INDEX} is {ratio!r}, not between 0 and 1; copy the "
                "folder again."
            )
        model = super().load(path, device, dtype, bits)
        assert isinstance(model, WanTwoDenoisers)
        check_text_to_video(path, model.networks["transformer_2"])
        return model

    # --- taking turns ---

    def _has_room_for(self, network: nn.Module) -> bool:
        if self.device.type != "cuda":
            return True
        size = sum(weight.nbytes for weight in network.parameters())
        return torch.cuda.mem_get_info(self.device)[0] > ROOM * size

    def take_turns(self) -> None:
        """From now on only the transformer that is at work is on the device."""
        self.turns = Turns({name: self.networks[name] for name in self.denoisers}, self.device)
        self.gradient_checkpointing(False)

    def make_room(self, missing: int) -> int:
        if self.turns is not None or self.quantized or self.device.type != "cuda":
            return 0
        self.take_turns()
        assert self.turns is not None
        return self.turns.bytes_of("transformer_2")

    def gradient_checkpointing(self, enabled: bool) -> None:
        """Always on while they take turns: a kept graph would hold the weights of the one that has left."""
        super().gradient_checkpointing(enabled or self.turns is not None)

    def _move(self, device: torch.device) -> None:
        if self.turns is None:
            super()._move(device)
            return
        self.turns.send_home()
        self.vae.to(device)

    def inject(self, layers: Mapping[str, tuple[int, float]]) -> dict[str, nn.Module]:
        injected = {}
        for name in self.denoisers:
            if self.turns is not None:
                self.turns.bring(name)
            injected |= peft_layers.inject({name: self.networks[name]}, layers, self.device)
        return injected

    # --- sampling ---

    def denoise(self, latents: Tensor, timestep: float, conditioning: Rows) -> Tensor:
        """noise - video, float32, shape of latents [B, C, F, h, w], by the transformer for this timestep."""
        self.release_text_encoders()
        name = self.denoisers[0] if timestep >= self.boundary else self.denoisers[1]
        self.denoiser, turns = self.networks[name], self.turns
        if turns is None:
            return super().denoise(latents, timestep, conditioning)
        turns.bring(name)
        output = super().denoise(latents, timestep, conditioning)
        if output.requires_grad:  # a graph may be kept until after the other's turn
            output.register_hook(lambda _: turns.bring(name))
        return output
