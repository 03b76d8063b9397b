"""What the layers of an adapter are called: in the adapter and in files.

In the adapter a layer of the denoiser is called by its module path; one of a text encoder has that encoder's
name before it: 'text_encoder.text_model.encoder.layers.0.mlp.fc1'.
"""

from __future__ import annotations

from torch import nn

from rlr_core.diffusion.models.base import DiffusionModel

LEVEL = "text_model."
"""The outermost level of a CLIP text encoder, which some programs and versions leave out."""


def networks(model: DiffusionModel) -> dict[str, nn.Module]:
    """What an adapter can go into, by name; the denoiser's is ''."""
    return {"": model.denoiser, **model.text_encoders}


def join(network: str, path: str) -> str:
    """The name of the layer at `path` in a network."""
    return f"{network}.{path}" if network else path


def split(model: DiffusionModel, name: str) -> tuple[str, str]:
    """Network and module path of a layer's name."""
    network, _, path = name.partition(".")
    return (network, path) if network in model.text_encoders else ("", name)


def adaptable(network: nn.Module) -> list[str]:
    """Paths of the Linear and Conv2d modules."""
    return [path for path, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def prefix(model: DiffusionModel, network: str, layout: str) -> str:
    """How the keys of a network's layers begin in the files that we write."""
    return model.text_prefixes[network][layout][0] if network else model.lora_prefixes[layout]


def in_file(model: DiffusionModel, name: str, layout: str) -> str:
    """What a layer is called in a file of this layout."""
    network, path = split(model, name)
    return _key(prefix(model, network, layout), path, layout)


def known_in_files(model: DiffusionModel) -> dict[str, str]:
    """Every name that a layer of the model may have in a file, in any layout -> its name in an adapter."""
    known = {}
    for network, module in networks(model).items():
        for layout, own in model.lora_prefixes.items():
            beginnings = model.text_prefixes[network][layout] if network else (own,)
            for path in adaptable(module):
                spellings = (path, path.removeprefix(LEVEL)) if network else (path,)
                known |= {_key(b, s, layout): join(network, path) for b in beginnings for s in spellings}
    return known


def _key(beginning: str, path: str, layout: str) -> str:
    return beginning + (path.replace(".", "_") if layout == "kohya" else path)
