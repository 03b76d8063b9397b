"""Methods: one file each, listed here by name, imported on first use.

A new method is one new file and one line in METHODS.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from rlr_core.errors import UserError, nearest

if TYPE_CHECKING:
    from rlr_core.methods.base import Method

METHODS: dict[str, str] = {
    "auto": "rlr_core.methods.auto:Auto",
    "adaptive": "rlr_core.methods.adaptive:Adaptive",
    "rlr": "rlr_core.methods.rlr:Rlr",
    "full": "rlr_core.methods.full:Full",
    "truncated": "rlr_core.methods.truncated:Truncated",
    "likelihood_ratio": "rlr_core.methods.likelihood_ratio:LikelihoodRatio",
    "ddpo": "rlr_core.methods.ddpo:Ddpo",
    "zeroth_order": "rlr_core.methods.zeroth_order:ZerothOrder",
    "nft": "rlr_core.methods.nft:Nft",
    "awm": "rlr_core.methods.awm:Awm",
    "dpo": "rlr_core.methods.dpo:Dpo",
    "d3po": "rlr_core.methods.d3po:D3po",
    "graft": "rlr_core.methods.graft:Graft",
    "p_graft": "rlr_core.methods.p_graft:PGraft",
    "reward_weighted": "rlr_core.methods.reward_weighted:RewardWeighted",
}
"""Method name -> 'module:Class'."""


def method_class(name: str) -> type[Method]:
    """The class of a method by its name. Raises UserError for an unknown one."""
    if name not in METHODS:
        known = list(METHODS)
        raise UserError(f"Unknown method {name!r}; known: {', '.join(known)}.{nearest(name, known)}")
    module, attribute = METHODS[name].split(":")
    return getattr(importlib.import_module(module), attribute)
