"""CLIP's two towers, frozen: pixels to features with a gradient, prompts to features once.

Built by open_clip from a file's tensors (any of the layouts in clip_layout.py); nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlr_core.errors import UserError
from rlr_core.rewards.files import WeightFile, fill, wrong_architecture
from rlr_core.rewards.towers.clip_layout import ClipFile, read_clip, text_sizes, vision_sizes
from rlr_core.rewards.towers.precision import as_dtype, default_dtype, run_in
from rlr_core.rewards.towers.preprocess import normalize

CLIP_L = WeightFile(
    "clip",
    (
        "clip-vit-large-patch14.safetensors",
        "clip-vit-large-patch14",
        "clip_vision_l.safetensors",
        "ViT-L-14.safetensors",
    ),
    "OpenAI's CLIP ViT-L/14, image tower (ComfyUI's clip_vision file will do)",
    "https://huggingface.co/openai/clip-vit-large-patch14 (model.safetensors, renamed)",
)
PROMPTS_AT_ONCE = 32


class ImageTower:
    """A frozen image tower: pixels [B, 3, S, S] in [0, 1] to float32 features, with a gradient."""

    def __init__(
        self,
        clip: ClipFile,
        needed: WeightFile,
        dtype: str | torch.dtype | None = None,
        checkpointing: bool = False,
    ):
        """dtype: the network's; None is float16 on an accelerator and float32 on the CPU, where torch has no
        fast float16 on the way back (minutes a picture) and bfloat16 is the smaller choice.

        checkpointing: recompute activations on the way back; about a twentieth of the memory, a third slower.
        """
        transformer = _open_clip_transformer()
        self.sizes = vision_sizes(clip.vision)
        self.dtype = as_dtype(dtype)
        act_layer = transformer.QuickGELU if clip.quick_gelu else nn.GELU
        with on_no_memory():
            network = transformer.VisionTransformer(**self.sizes._asdict(), act_layer=act_layer)
            if "proj" not in clip.vision:
                network.proj = None
        self.network = fill(network, clip.vision, clip.path, needed)
        self.network.set_grad_checkpointing(checkpointing)
        self.device: torch.device | None = (
            None  # until the first use or `to`, the weights stay as in the file
        )

    @property
    def size(self) -> int:
        """Side of the pictures it takes, in pixels."""
        return self.sizes.image_size

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.sizes.layers

    def to(self, device: torch.device | str) -> None:
        """Move to a device, in the dtype for it."""
        self.device = torch.device(device)
        with torch.inference_mode(
            False
        ):  # ComfyUI runs nodes in inference mode; such weights could not be used
            self.network.to(self.device, self.dtype or default_dtype(self.device))

    def features(self, pixels: Tensor) -> Tensor:
        """Features [B, D], float32, not normalized."""
        return self._run(self.network, pixels)

    def tokens(self, pixels: Tensor, layers: Sequence[int]) -> Tensor:
        """Patch tokens [B, len(layers), N, width], float32, after each of the given layers (from 0)."""

        def network(x: Tensor) -> Tensor:
            out: Any = self.network.forward_intermediates(
                x, indices=list(layers), stop_early=True, intermediates_only=True, output_fmt="NLC"
            )
            return torch.stack(out["image_intermediates"], 1)

        return self._run(network, pixels)

    def _run(self, network, pixels: Tensor) -> Tensor:
        if self.device is None:
            self.to(pixels.device)
        dtype = next(self.network.parameters()).dtype
        return run_in(dtype, network, normalize(pixels.to(self.device)))


class PromptFeatures:
    """Prompts to text features [B, D] of length 1, float32, each computed once.

    The text tower is read when prompts come that are not known yet, and dropped again when they are.
    """

    def __init__(self, path: Path, needed: WeightFile, quick_gelu: bool | None = None):
        self.path, self.needed, self.quick_gelu = path, needed, quick_gelu
        self.known: dict[str, Tensor] = {}

    def embed(self, prompts: Sequence[str], device: torch.device | str) -> Tensor:
        """Features [B, D] of the prompts, on the device."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            with torch.inference_mode(False), torch.no_grad():
                self._compute(new, device)
        return torch.stack([self.known[prompt] for prompt in prompts]).to(device)

    def _compute(self, prompts: list[str], device: torch.device | str) -> None:
        clip = read_clip(self.path, self.needed, self.quick_gelu)
        tower = text_tower(clip, self.needed).to(device, torch.float32)
        tokenize = _open_clip_tokenizer(tower.context_length)
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            some = prompts[start : start + PROMPTS_AT_ONCE]
            features = F.normalize(tower(tokenize(some).to(device)), dim=-1).cpu()
            self.known.update(zip(some, features, strict=True))


def text_tower(clip: ClipFile, needed: WeightFile) -> Any:
    """The frozen text tower of a CLIP file; UserError for a file that has none."""
    if "token_embedding.weight" not in clip.text or "text_projection" not in clip.text:
        raise UserError(
            f"{clip.path} has an image tower only; expected {needed.what}, with the text tower. "
            f"{needed.advice()}"
        )
    for name, tower in (("positional_embedding", clip.text), ("proj", clip.vision)):
        if name not in tower:
            raise wrong_architecture(clip.path, needed, missing=[name])
    transformer = _open_clip_transformer()
    act_layer = transformer.QuickGELU if clip.quick_gelu else nn.GELU
    with on_no_memory():
        network = transformer.TextTransformer(**text_sizes(clip.text)._asdict(), act_layer=act_layer)
    return fill(network, clip.text, clip.path, needed)


def on_no_memory():
    """A context in which modules are built without memory for their parameters; buffers stay real."""
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)


def _open_clip_transformer():
    """open_clip's transformer module, or a UserError that says what is wrong with the installation."""
    try:
        from open_clip import transformer
    except Exception as error:  # torchvision of another torch raises RuntimeError here, not ImportError
        raise UserError(
            f"open_clip could not be imported ({error}); install open_clip_torch>=3.2 and a torchvision that "
            "belongs to the installed torch."
        ) from error
    return transformer


def _open_clip_tokenizer(context_length: int):
    """CLIP's tokenizer, from open_clip's own copy of the vocabulary: list of str to [B, context_length]."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)
