"""What the layers of an adapter are called in files; in an adapter a layer is '<network>.<module path>'."""

from __future__ import annotations

from rlr_core.diffusion.models.base import DiffusionModel


def layers_by_file_name(model: DiffusionModel, denoiser: str | None = None) -> dict[str, str]:
    """Every name that a layer of the model may have in a file, in any layout -> its name in an adapter.

    denoiser: the one that the file is for, where there are several, whose layers are called the same.
    """
    known = {}
    for network in model.networks:
        if denoiser is not None and network in model.denoisers and network != denoiser:
            continue
        for path in model.adaptable(network):
            layer = f"{network}.{path}"
            for layout in model.lora_layouts:
                for name in (model.lora_key(layer, layout), *model.lora_key_aliases(layer, layout)):
                    known.setdefault(name, layer)
    return known
