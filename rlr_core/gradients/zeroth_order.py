"""Zeroth order: the gradient of the smoothed J from rewards alone, by perturbing the adapter's weights.

One perturbation eps ~ N(0, I) is shared by every step it acts on, regenerated from its seed, never stored.
Antithetic twins theta + s eps and theta - s eps share x_T and every noise; their rewards give

    (R_plus - R_minus) / (2 s) * eps ,

unbiased for the gradient of E_eps[J(theta + s eps)] (math.md section 2, rule 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Perturbation:
    """One perturbation of the parameters, switched on and off between steps of a rollout."""

    def __init__(self, parameters: Sequence[Tensor], seed: int, scale: float):
        """scale: the standard deviation s."""
        self.parameters = list(parameters)
        self.seed = seed
        self.scale = scale
        self._originals: list[Tensor] | None = None

    def directions(self) -> Iterator[Tensor]:
        """eps, a tensor per parameter, regenerated."""
        for index, parameter in enumerate(self.parameters):
            generator = torch.Generator(parameter.device).manual_seed((self.seed * 1_000_003 + index) % 2**63)
            yield torch.randn(
                parameter.shape, generator=generator, device=parameter.device, dtype=torch.float32
            )

    @torch.no_grad()
    def switch(self, sign: int) -> None:
        """Set the parameters to theta + sign * s * eps; sign 0 restores theta exactly."""
        if self._originals is not None:
            for parameter, original in zip(self.parameters, self._originals, strict=True):
                parameter.copy_(original)
            self._originals = None
        if sign:
            self._originals = [parameter.clone() for parameter in self.parameters]
            for parameter, direction in zip(self.parameters, self.directions(), strict=True):
                parameter.add_(direction.to(parameter.dtype), alpha=sign * self.scale)

    @torch.no_grad()
    def add_gradient(self, totals: Sequence[Tensor], plus: Tensor, minus: Tensor) -> None:
        """Add the sum over trajectories of (R_plus - R_minus) / (2 s) * eps. plus, minus: rewards [B]."""
        coefficient = ((plus.double() - minus.double()).sum() / (2 * self.scale)).float()
        for total, direction in zip(totals, self.directions(), strict=True):
            total.add_(direction * coefficient.to(direction.device))
