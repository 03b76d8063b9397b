"""Put a LoRA from a file into a model: all of it or none of it."""

from __future__ import annotations

from pathlib import Path

import torch

from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.errors import UserError
from rlr_core.lora import halves
from rlr_core.lora.attach import Adapter, attach_to, check_free
from rlr_core.lora.formats import LoraFile, LoraModule, acts, is_text_encoder, load_lora
from rlr_core.lora.names import layers_by_file_name


def apply_lora(model: DiffusionModel, path: str | Path, strength: float = 1.0) -> Adapter:
    """Attach the LoRA in a file to the model; it can be sampled with and trained on.

    Raises UserError, with the model unchanged, if any part of the file has no place in the model, or if there
    is an adapter in it already.
    """
    check_free(model)
    first = load_lora(path)
    modules: dict[str, LoraModule] = {}
    for part, denoiser in halves.files(model, Path(path), first.metadata).items():
        file = first if part == Path(path) else load_lora(part)
        mine = {place: file.modules[name] for place, name in _places(model, file, part, denoiser).items()}
        _refuse_other_sizes(model, mine, part)
        modules |= mine
    adapter = attach_to(model, {place: (module.rank, module.alpha) for place, module in modules.items()})
    state = {}
    for place, module in modules.items():
        state[f"{place}.lora_A.weight"] = module.down
        state[f"{place}.lora_B.weight"] = module.up
    try:
        # a 1 x 1 convolution and a linear layer are the same thing, and files mix them
        shapes = {name: parameter.shape for name, parameter in adapter.named_parameters().items()}
        adapter.load_state_dict({name: _as_linear_or_conv(t, shapes[name]) for name, t in state.items()})
    except UserError as error:
        adapter.detach()
        raise UserError(f"{path} was made for another model than {model.name}: {error}") from error
    adapter.strength = strength
    adapter.end_percent = acts(first.metadata)[1]
    return adapter


def _refuse_other_sizes(model: DiffusionModel, modules: dict[str, LoraModule], path: Path) -> None:
    """Before anything is allocated: a small file can ask for an adapter of any size."""
    for name, module in modules.items():
        network, _, inside = name.partition(".")
        layer = model.networks[network].get_submodule(inside)
        inputs = getattr(layer, "in_features", getattr(layer, "in_channels", None))
        outputs = getattr(layer, "out_features", getattr(layer, "out_channels", None))
        if inputs is None or outputs is None:
            continue  # an adapter's own check has to do
        if module.down.shape[1] != inputs or module.up.shape[0] != outputs:
            raise UserError(
                f"{path} was made for another model than {model.name}: {name} has {inputs} inputs and "
                f"{outputs} outputs, in the file {module.down.shape[1]} and {module.up.shape[0]}; nothing "
                f"was applied."
            )


def _places(model: DiffusionModel, file: LoraFile, path: Path, denoiser: str | None) -> dict[str, str]:
    """Name in the adapter -> name in the file. Raises UserError if a name has no place, or two have one."""
    known = layers_by_file_name(model, denoiser)
    lost = [name for name in file.modules if name not in known]
    text = [name for name in lost if is_text_encoder(name)]
    if text and set(model.networks) == set(model.denoisers):
        raise UserError(
            f"{path} also changes a text encoder ({len(text)} modules), which {model.name} has no place for; "
            "use a LoRA of the denoiser alone."
        )
    if lost:
        raise UserError(
            f"{path} was made for another model than {model.name}: it has no place for {lost[0]!r} "
            f"({len(lost)} of {len(file.modules)} modules); nothing was applied."
        )
    places = {known[name]: name for name in file.modules}
    if len(places) < len(file.modules):
        raise UserError(f"{path} changes some modules twice, under two names; nothing was applied.")
    return places


def _as_linear_or_conv(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    same = tensor.flatten(1).shape == (shape[0], shape[1:].numel())
    return tensor.reshape(shape) if same else tensor
