"""How a model wants to be sampled: with cfg, with a scale of its own, or with neither, and in how many steps.

The network tells some of it: whether the scale is among its inputs, whether it is Flux schnell, a mean
flow, or sampled as LCM. Distilled weights of a network that also comes undistilled (Z-Image Turbo, SDXL
Lightning, Qwen-Image with a Lightning LoRA) look like any others: only the names of their files say so. A
name is a hint. It decides where nothing was said (guidance and steps left at 0), the node tells it, and what
was said stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlr_core.config import SamplerConfig

CFG, EMBEDDED, NONE = "cfg", "embedded", "none"
DISTILLED_STEPS = 8
FLUX_SCALE, HUNYUAN_SCALE = 3.5, 6.0
"""What ComfyUI tells these networks where no node says otherwise."""
DISTILLED = re.compile(
    r"(?P<word>turbo|lightning|schnell|hyper(?=[-_ ]?(sd|flux))|(?<![a-z])(lcm|dmd)|"
    r"(?<!de)(?<!de[-_ ])(?<!un)distill|(?<!\d)[1-8][-_ ]?steps?(?![a-z])|klein(?!.*base))",
    re.IGNORECASE,
)
"""What is in the names of files whose model takes few steps and no cfg."""


class Manner(NamedTuple):
    """How a model is sampled where nobody says otherwise."""

    kind: str
    """'cfg', 'embedded' or 'none', as the engine calls it."""
    steps: int
    guidance: float
    distilled: str
    """Why it is taken for a distilled model; '' where it is not."""


def manner(base: Any, model_sampling: Any, chosen: str | None, files: Sequence[str]) -> Manner:
    """The manner of a model.

    base: ComfyUI's model; model_sampling: its sampling, with what nodes put in its place; chosen: the kind
    that a person has set, or None; files: names of the files that it is made of.
    """
    kind = chosen or kind_of(base)
    distilled = ""
    if chosen == NONE:
        distilled = "guidance_kind says so"
    elif chosen != CFG:
        distilled = _by_network(base, model_sampling) or _by_name(files)
    usual = SamplerConfig()
    steps = DISTILLED_STEPS if distilled else usual.steps
    if kind == EMBEDDED:
        return Manner(kind, steps, _own_scale(base), distilled)
    return Manner(kind, steps, 1.0 if distilled else usual.guidance, distilled)


def kind_of(base: Any) -> str:
    """How a network is guided, as far as it tells: a scale among its inputs, or classifier-free."""
    embedded = getattr(getattr(base.diffusion_model, "params", None), "guidance_embed", False)
    return EMBEDDED if embedded else CFG


def _own_scale(base: Any) -> float:
    return HUNYUAN_SCALE if type(base).__name__.startswith("Hunyuan") else FLUX_SCALE


def _by_network(base: Any, model_sampling: Any) -> str:
    if type(base.model_config).__name__ == "FluxSchnell":
        return "its network is Flux schnell's"
    if getattr(getattr(base.diffusion_model, "params", None), "meanflow", False):
        return "its network is a mean flow"
    if any(kind.__name__ == "LCM" for kind in type(model_sampling).__mro__):
        return "it is sampled as LCM"
    return ""


def _by_name(files: Sequence[str]) -> str:
    for file in files:
        if found := DISTILLED.search(file):
            return f"the file {file} has {found['word']!r} in its name"
    return ""
