"""Steps and guidance of RLR Train and RLR Sample: 0 is what the model wants, and a wrong choice is said."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import sockets
from .schema import setting_input

MOST_OF_DISTILLED = 2.0
"""Up to this some distilled models still take cfg."""


def steps_input(name: str) -> io.Input:
    """Sampler steps."""
    return _input("sampler.steps", name, "20; 8 for turbo models, 6 for the built-in one", 0, max=200)


def guidance_input(name: str) -> io.Input:
    """Guidance."""
    wanted = (
        "5 with cfg, the usual scale of models that are told one, 1 for turbo models, 3 for the built-in one"
    )
    return _input("sampler.guidance", name, wanted, 0.0, max=30.0)


def _input(setting: str, name: str, wanted: str, left_open: float, **changes: Any) -> io.Input:
    told = setting_input(setting, name).tooltip
    tooltip = f"{told} 0: what the model wants ({wanted})."
    return setting_input(setting, name, min=left_open, default=left_open, tooltip=tooltip, **changes)


def filled(inputs: dict[str, Any], model: sockets.Model, steps: str, guidance: str) -> dict[str, Any]:
    """The inputs with what the model wants where steps and guidance, under these names, are 0."""
    wanted = model.wanted
    return inputs | {
        steps: inputs[steps] or wanted.steps,
        guidance: inputs[guidance] or wanted.guidance,
    }


def warnings(model: sockets.Model, guidance: float) -> list[str]:
    """What a guidance scale gets wrong about a model without being impossible, in a sentence each."""
    if not isinstance(model, sockets.Native) or not model.distilled or guidance <= MOST_OF_DISTILLED:
        return []
    if model.guidance_kind == "none":
        return [
            f"{model.name} is distilled and takes no cfg: guidance {guidance:g} is not used; leave it at 0."
        ]
    if model.guidance_kind == "cfg":
        return [
            f"{model.name} is taken for a distilled model ({model.distilled}), whose pictures guidance "
            f"{guidance:g} usually spoils: leave it at 0, or set guidance_kind of RLR From ComfyUI to cfg if "
            "it is none."
        ]
    return []
