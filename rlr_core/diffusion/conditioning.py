"""What the denoiser is told: prompts encoded once, and which of them each sample follows at each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlr_core.config.prompts import Prompt
from rlr_core.diffusion.models.base import DiffusionModel, Rows
from rlr_core.errors import UserError


@dataclass
class Conditioning:
    """What the denoiser is told: encoded prompts, and which one each sample follows in each stage.

    Several stages make a prompt that changes on the way from noise to picture (DCoT, math.md section 1).
    """

    table: Rows
    """Encoded prompts [P, ...]; row 0 is the negative prompt."""
    rows: Tensor
    """Row of the table for each sample and stage, [B, S], stages in sampling order (coarse first)."""
    boundaries: tuple[float, ...] = ()
    """Where stages change: S - 1 rising shares of the chain, counted from the noise."""

    def __post_init__(self) -> None:
        if len(self.boundaries) != self.rows.shape[1] - 1:
            raise ValueError(f"{self.rows.shape[1]} stages need {self.rows.shape[1] - 1} boundaries.")

    def stage(self, t: float, T: float) -> int:
        """Which stage step t of T lies in."""
        progress = (T - t) / T
        return sum(progress >= boundary - 1e-9 for boundary in self.boundaries)

    def at(self, t: float, T: float, guided: bool) -> Rows:
        """Rows for the batch at step t: [B, ...], or [2 B, ...] with the negative prompt first."""
        rows = self.rows[:, self.stage(t, T)]
        if guided:
            rows = torch.cat([torch.zeros_like(rows), rows])
        return {name: values[rows] for name, values in self.table.items()}

    def select(self, index: Tensor) -> Conditioning:
        """The conditioning of some of the samples. index: [N] integers."""
        return Conditioning(self.table, self.rows[index.to(self.rows.device)], self.boundaries)


class PromptBook:
    """Encoded prompts. The table lies in CPU memory; a batch takes along the few rows that it uses."""

    def __init__(
        self,
        model: DiffusionModel,
        prompts: Sequence[Prompt],
        negative: str = "",
        boundaries: Sequence[float] | None = None,
        encode_batch: int = 32,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ):
        """boundaries: S - 1 rising shares of the chain, counted from the noise; None divides it evenly.

        on_progress: told before every batch how many texts are encoded, of how many; may raise to stop.
        """
        self.prompts = list(prompts)
        stages = len(self.prompts[0].stages)
        self.boundaries = tuple(boundaries or [i / stages for i in range(1, stages)])
        if len(self.boundaries) != stages - 1 or list(self.boundaries) != sorted(self.boundaries):
            raise UserError(
                f"sampler.stage_boundaries is {list(self.boundaries)}; prompts with {stages} stages need "
                f"{stages - 1} rising shares of the chain."
            )
        texts = list(dict.fromkeys([negative, *(text for p in self.prompts for text in p.stages)]))
        place = {text: row for row, text in enumerate(texts)}
        self.rows = torch.tensor([[place[text] for text in p.stages] for p in self.prompts])
        blocks = []
        with torch.no_grad():
            for start in range(0, len(texts), encode_batch):
                on_progress(start, len(texts))
                block = model.encode_prompts(texts[start : start + encode_batch])
                blocks.append({name: value.cpu() for name, value in block.items()})
        blocks = _filled_up(blocks)
        self.table: Rows = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
        self.device = model.device

    def texts(self, index: Sequence[int]) -> list[str]:
        """What the reward is asked about, for the prompts of the given numbers."""
        return [self.prompts[int(i)].text for i in index]

    def conditioning(self, index: Sequence[int] | Tensor) -> Conditioning:
        """Conditioning [N] on the device, for the prompts of the given numbers."""
        rows = self.rows[torch.as_tensor(index)]
        used, places = torch.unique(torch.cat([torch.zeros(1, dtype=torch.long), rows.flatten()]),
                                    return_inverse=True)  # fmt: skip
        table = _cut({name: value[used] for name, value in self.table.items()})
        table = {name: value.to(self.device) for name, value in table.items()}
        return Conditioning(table, places[1:].view_as(rows).to(self.device), self.boundaries)


def _filled_up(blocks: Sequence[Rows]) -> list[Rows]:
    """Blocks of rows with a mask, with zeros up to the length of the longest."""
    if "mask" not in blocks[0]:
        return list(blocks)
    longest = max(block["mask"].shape[1] for block in blocks)

    def filled(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros(len(rows), longest - rows.shape[1], *rows.shape[2:])], 1)

    return [{name: filled(rows) for name, rows in block.items()} for block in blocks]


def _cut(rows: Rows) -> Rows:
    """Rows with a mask, without the places at the end that none of them fills."""
    if "mask" not in rows:
        return rows
    length = int(rows["mask"].sum(1).max())
    return {name: value[:, :length] for name, value in rows.items()}
