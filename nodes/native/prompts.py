"""Prompts as ComfyUI's CLIP encodes them, weights in brackets and all, and as the model wants them.

Conditionings have lengths of their own, and joint attention sees every token: they are never padded or
repeated to a common length. `Book.groups` puts those together that can share a pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from . import refusals
from .tensors import out_of_inference

KEPT = 64
"""Conditionings kept on the device."""


class Book:
    """Encoded prompts by place, and what a model makes of them for a latent's shape."""

    def __init__(self, clip: Any, options: dict[str, Any] | None = None):
        """clip: ComfyUI's; options: what FluxGuidance and its like would add to every conditioning."""
        self.clip = clip
        self.options = dict(options or {})
        self.texts: list[str] = []
        self._places: dict[str, int] = {}
        self._encoded: list[list[Any]] = []
        self._for_model: OrderedDict[tuple, dict[str, Any]] = OrderedDict()

    def places(self, texts: Sequence[str]) -> Tensor:
        """Place of each text [N, 1], encoding those that are new. The CLIP loads itself."""
        for text in texts:
            if text not in self._places:
                self._encoded.append(self._encode(text))
                self._places[text] = len(self.texts)
                self.texts.append(text)
        return torch.tensor([[self._places[text]] for text in texts])

    def _encode(self, text: str) -> list[Any]:
        with torch.no_grad():
            encoded = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        refusals.check_conditioning(encoded)
        return [[out_of_inference(cross), out_of_inference(rest)] for cross, rest in encoded]

    def groups(
        self, base: Any, places: Sequence[int], shape: Sequence[int], device: torch.device
    ) -> list[Group]:
        """Conditionings for a batch, split into what one pass can take.

        base: ComfyUI's model, loaded; places: of each sample; shape: of one latent.
        """
        by_kind: dict[tuple, Group] = {}
        for sample, place in enumerate(places):
            conditioning = self._of_model(base, place, tuple(shape), device)
            kind = tuple((name, _kind(value)) for name, value in sorted(conditioning.items()))
            group = by_kind.setdefault(kind, Group([], []))
            group.samples.append(sample)
            group.conditionings.append(conditioning)
        return list(by_kind.values())

    def _of_model(
        self, base: Any, place: int, shape: tuple[int, ...], device: torch.device
    ) -> dict[str, Any]:
        key = (place, shape)
        if key not in self._for_model:
            self._for_model[key] = self._ask(base, self._encoded[place], shape, device)
            while len(self._for_model) > KEPT:
                self._for_model.popitem(last=False)
        self._for_model.move_to_end(key)
        return self._for_model[key]

    def _ask(
        self, base: Any, encoded: list[Any], shape: tuple[int, ...], device: torch.device
    ) -> dict[str, Any]:
        """What the model makes of one conditioning: {name: COND}, as a KSampler would hand it over."""
        with torch.inference_mode():  # some models prepare it otherwise where they think they are trained
            empty = torch.zeros(1, *shape, device=device)
            entries = comfy.sampler_helpers.convert_cond(
                [[cross, rest | self.options] for cross, rest in encoded]
            )
            (entry,) = comfy.samplers.encode_model_conds(
                base.extra_conds,
                entries,
                empty,
                device,
                "positive",
                latent_image=empty,
                denoise_mask=None,
                seed=0,
            )
            ready = {
                name: value.process_cond(batch_size=1, area=None, device=device)
                for name, value in entry["model_conds"].items()
            }
        return {name: value._copy_with(_on(value.cond, device)) for name, value in ready.items()}

    def forget(self) -> None:
        """Drop what was made for the device."""
        self._for_model.clear()


@dataclass
class Group:
    """Samples of a batch that can be told what they are told in one pass."""

    samples: list[int]
    conditionings: list[dict[str, Any]]

    def keywords(self) -> dict[str, Any]:
        """Keywords of `apply_model` for these samples."""
        first, *others = self.conditionings
        return {name: value.concat([other[name] for other in others]) for name, value in first.items()}


def _kind(value: Any) -> Any:
    """What has to be equal for two conditionings to be concatenated."""
    if isinstance(value, comfy.conds.CONDConstant):
        constant = value.cond
        return (
            "constant",
            repr(constant) if not isinstance(constant, Tensor) else constant.tolist().__repr__(),
        )
    if isinstance(value, comfy.conds.CONDList):
        return tuple(tuple(part.shape) for part in value.cond)
    return tuple(value.cond.shape)


def _on(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return out_of_inference(value.to(device))
    if isinstance(value, list):
        return [_on(part, device) for part in value]
    return value
