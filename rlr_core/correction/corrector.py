"""A small flow from standard normal noise to the noise that a sampler wants."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlr_core.common.atomic import replacing
from rlr_core.errors import UserError

FREQUENCIES = 16
"""Of the sines and cosines that tell a network the time."""
FORMAT = "rlr_corrector"


class Corrector(nn.Module):
    """Velocity of x_s = (1 - s) noise + s z, from z ~ N(0, I) at s = 1 to the wanted noise at s = 0.

    Were the wanted noise standard normal too, the velocity would be x (2 s - 1) / scale(s)^2. The network
    learns what is to be added to that, and starts with nothing: untrained, it changes no noise.
    """

    def __init__(self, channels: int, width: int = 64, blocks: int = 4):
        """channels: of the latents [channels, h, w]; width, blocks: of the network."""
        super().__init__()
        self.sizes = {"channels": channels, "width": width, "blocks": blocks}
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.inwards = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.outwards = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.outwards.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """What is added to the velocity [B, C, h, w] at x [B, C, h, w] and times s [B] in [0, 1]."""
        powers = torch.arange(FREQUENCIES, device=x.device) * math.pi / 2
        waves = s[:, None] * (1 + powers)
        time = self.time(torch.cat([waves.sin(), waves.cos()], 1))
        hidden = self.inwards(x / scale(s).view(-1, 1, 1, 1))
        for block in self.blocks:
            hidden = block(hidden, time)
        return self.outwards(F.silu(hidden))

    def loss(self, wanted: Tensor, z: Tensor, s: Tensor) -> Tensor:
        """[B] mean square error of the velocity. wanted, z: [B, C, h, w]; s: [B]."""
        column = s.view(-1, 1, 1, 1)
        x = (1 - column) * wanted + column * z
        gaussian = x * ((2 * column - 1) / scale(column) ** 2)
        return (self(x, s) - (z - wanted - gaussian)).square().flatten(1).mean(1)

    @torch.no_grad()
    def correct(self, z: Tensor, steps: int = 8) -> Tensor:
        """Noise for the sampler [B, C, h, w], from z ~ N(0, I): midpoint steps in y = x / scale(s), along
        which the velocity of standard normal noise is 0."""
        y = z
        for index in range(steps):
            s, after = 1 - index / steps, 1 - (index + 1) / steps
            middle = y + self._speed(y, s) * (after - s) / 2
            y = y + self._speed(middle, (s + after) / 2) * (after - s)
        return y

    def _speed(self, y: Tensor, s: float) -> Tensor:
        times = torch.full((len(y),), s, device=y.device)
        size = scale(times).view(-1, 1, 1, 1)
        return self(size * y, times) / size

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> Path:
        """Write a .safetensors file. metadata: what it was made for. Raises UserError where the disk
        refuses."""
        from safetensors.torch import save_file

        path = Path(path).expanduser()
        tensors = {name: value.detach().float().contiguous() for name, value in self.state_dict().items()}
        with replacing(path) as temporary:
            save_file(tensors, temporary, {FORMAT: json.dumps(self.sizes), **(metadata or {})})
        return path


def load_corrector(path: str | Path) -> tuple[Corrector, dict[str, str]]:
    """A corrector and the metadata it was saved with. Raises UserError for a file that is none."""
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            corrector = Corrector(**json.loads(metadata.pop(FORMAT)))
            corrector.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{str(path)!r} is no corrector: {error}; make one with rlr correct.") from error
    return corrector.eval().requires_grad_(False), metadata


def scale(s: Tensor) -> Tensor:
    """Standard deviation of x_s where both ends are standard normal."""
    return (s.square() + (1 - s).square()).sqrt()


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        inner = self.first(F.silu(self.norm(hidden))) + self.time(time)[:, :, None, None]
        return hidden + self.second(F.silu(inner))
