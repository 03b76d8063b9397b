"""Put a LoRA from a file into a model: all of it or none of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.errors import UserError
from rlr_core.lora.attach import Adapter, attach_to
from rlr_core.lora.formats import LoraFile, is_text_encoder, load_lora


def apply_lora(model: DiffusionModel, path: str | Path, strength: float = 1.0) -> Adapter:
    """Attach the LoRA in a file to the model; it can be sampled with and trained on.

    Raises UserError, with the model unchanged, if any part of the file has no place in the model.
    """
    file = load_lora(path)
    places = _places(model, file, Path(path))
    ranks = {place: (file.modules[name].rank, file.modules[name].alpha) for place, name in places.items()}
    adapter = attach_to(model, ranks)
    state = {}
    for place, name in places.items():
        state[f"{place}.lora_A.weight"] = file.modules[name].down
        state[f"{place}.lora_B.weight"] = file.modules[name].up
    try:
        # a 1 x 1 convolution and a linear layer are the same thing, and files mix them
        shapes = {name: parameter.shape for name, parameter in adapter.named_parameters().items()}
        adapter.load_state_dict({name: _as_linear_or_conv(t, shapes[name]) for name, t in state.items()})
    except UserError as error:
        adapter.detach()
        raise UserError(f"{path} was made for another model than {model.name}: {error}") from error
    adapter.strength = strength
    return adapter


def _places(model: DiffusionModel, file: LoraFile, path: Path) -> dict[str, str]:
    """Module path in the denoiser -> name in the file. Raises UserError if a name has no place."""
    known = {}
    for place, module in model.denoiser.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            known[model.lora_prefixes["kohya"] + place.replace(".", "_")] = place
            known[model.lora_prefixes["diffusers"] + place] = place
    lost = [name for name in file.modules if name not in known]
    text = [name for name in lost if is_text_encoder(name)]
    if text:
        raise UserError(
            f"{path} also changes the text encoder ({len(text)} modules), which cannot be applied here; "
            "use a LoRA of the denoiser alone."
        )
    if lost:
        raise UserError(
            f"{path} was made for another model than {model.name}: it has no place for {lost[0]!r} "
            f"({len(lost)} of {len(file.modules)} modules); nothing was applied."
        )
    return {known[name]: name for name in file.modules}


def _as_linear_or_conv(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    same = tensor.flatten(1).shape == (shape[0], shape[1:].numel())
    return tensor.reshape(shape) if same else tensor
