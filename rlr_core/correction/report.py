"""How near two sets of pictures are: KID and FID, by torch-fidelity, which is an extra."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlr_core.errors import UserError

SUBSETS = 100
LARGEST_SUBSET = 1000


class Distance(NamedTuple):
    """Between generated and real pictures."""

    kid: float
    """Kernel distance of their features: unbiased, and 0 on average where both have one law."""
    kid_deviation: float
    """Standard deviation of the kernel distance over subsets."""
    fid: float
    """Frechet distance of their features; falls with the number of pictures, so compare equal numbers."""


def distance(
    generated: Tensor, real: Tensor, features: Callable[[Tensor], Tensor], batch: int = 64
) -> Distance:
    """KID and FID of pictures [N, 3, H, W] and [M, 3, H, W] in [0, 1]. features: of pictures [B, 3, H, W],
    [B, D]; not Inception's unless they are, so figures compare with those of the same features only.

    Raises UserError where torch-fidelity is not installed.
    """
    try:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_kid import kid_features_to_metric
    except ImportError as error:
        raise UserError(
            'KID and FID need torch-fidelity, which is not installed: pip install "rlr-core[fidelity]".'
        ) from error
    with torch.no_grad():
        sides = [
            torch.cat([features(part).double().cpu() for part in pictures.split(batch)])
            for pictures in (generated, real)
        ]
    subset = min(LARGEST_SUBSET, *map(len, sides))
    kid = kid_features_to_metric(
        *sides, kid_subsets=SUBSETS, kid_subset_size=subset, rng_seed=0, verbose=False
    )
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, sides), verbose=False)
    return Distance(
        kid["kernel_inception_distance_mean"],
        kid["kernel_inception_distance_std"],
        fid["frechet_inception_distance"],
    )
