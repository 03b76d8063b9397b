"""A frozen vision-language model in a folder of transformers, asked what yes or no answers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlr_core.common.images import to_pil
from rlr_core.errors import UserError
from rlr_core.rewards.files import WeightFile
from rlr_core.rewards.towers.precision import recompute_activations
from rlr_core.rewards.towers.preprocess import normalize, resize

ANSWERS = {"yes": ("Yes", "yes", " Yes", " yes"), "no": ("No", "no", " No", " no")}


@runtime_checkable
class Answerer(Protocol):
    """Whatever looks at pictures and says yes or no."""

    differentiable: bool
    """Whether the logits have a gradient with respect to the pixels."""

    def yes_no_logits(self, images: Tensor, questions: list[str]) -> Tensor:
        """log p(yes) - log p(no) [B] for a question to each of images [B, 3, H, W] in [0, 1]."""
        ...


class VisionLanguageModel:
    """Any image-text-to-text model that transformers knows, by its own processor and chat template.

    Where the processor cuts pictures into patches as Qwen2-VL and Qwen3-VL do, the same is done in torch, and
    the pixels get a gradient; other processors are black boxes. Both see the question alike.
    """

    def __init__(self, folder: Path, needed: WeightFile, dtype: torch.dtype | None, checkpointing: bool):
        """dtype: None is bfloat16 on an accelerator and float32 on the CPU. Raises UserError for a folder
        that transformers cannot load without the network or without code of the folder's own."""
        self.folder, self.dtype = folder, dtype
        self.processor, self.model = _load(folder, needed)
        self.model.requires_grad_(False)
        if checkpointing:
            recompute_activations(self.model)
        self.answers = {answer: self._tokens(words) for answer, words in ANSWERS.items()}
        few_logits = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.options = {"use_cache": False} | ({"logits_to_keep": 1} if few_logits else {})
        self.device: torch.device | None = None
        self.differentiable = self._patches_agree()

    def to(self, device: torch.device | str) -> VisionLanguageModel:
        self.device = torch.device(device)
        on_cpu = self.device.type == "cpu"
        with torch.inference_mode(False):
            self.model.to(self.device, self.dtype or (torch.float32 if on_cpu else torch.bfloat16))
        return self

    def yes_no_logits(self, images: Tensor, questions: list[str]) -> Tensor:
        """See `Answerer`; a question at a time, so that none depends on what is asked beside it."""
        if self.device is None:
            self.to(images.device)
        pairs = zip(images, questions, strict=True)
        return torch.stack([self._logit(image.to(self.device), question) for image, question in pairs])

    def _logit(self, image: Tensor, question: str) -> Tensor:
        inputs = self.inputs(image, question).to(self.device)
        if self.differentiable:
            inputs["pixel_values"] = self._patches(image, inputs["image_grid_thw"])
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        logits = self.model(**inputs, **self.options).logits[0, -1].float()
        yes, no = (logits[self.answers[answer]].logsumexp(0) for answer in ("yes", "no"))
        return yes - no

    def inputs(self, image: Tensor, question: str) -> Any:
        """What the model's own processor makes of a picture [3, H, W] and a question."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return self.processor(text=[text], images=[to_pil(image)], return_tensors="pt")

    def _patches(self, image: Tensor, grid: Tensor) -> Tensor:
        """A picture [3, H, W] as rows of patches [N, C T P P], as Qwen2-VL's processor orders them.

        grid: [[1, rows, columns]], of patches. Patches come in squares of merge x merge, which the model
        makes one token of; a patch holds its picture T times, as if it were a video that stands still.
        """
        settings = self.processor.image_processor
        size, merge, times = settings.patch_size, settings.merge_size, settings.temporal_patch_size
        _, rows, columns = grid[0].tolist()
        pixels = resize(image[None], rows * size, columns * size)
        pixels = normalize(pixels, tuple(settings.image_mean), tuple(settings.image_std))[0]
        pixels = pixels.reshape(3, rows // merge, merge, size, columns // merge, merge, size)
        patches = pixels.permute(1, 4, 2, 5, 0, 3, 6)  # [R, C, merge, merge, 3, P, P]
        patches = patches.unsqueeze(5).expand(-1, -1, -1, -1, -1, times, -1, -1)
        return patches.reshape(rows * columns, 3 * times * size * size)

    def _patches_agree(self) -> bool:
        """Whether `_patches` gives what the processor gives for a picture that needs no resizing."""
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, 448, 672), generator=generator) / 255  # a multiple of 28 and of 32
        try:
            inputs = self.inputs(image, "Is this noise?")
            ours = self._patches(image, inputs["image_grid_thw"])
            return ours.shape == inputs["pixel_values"].shape and torch.allclose(
                ours, inputs["pixel_values"].float(), atol=1e-4
            )
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError):
            return False

    def _tokens(self, words: tuple[str, ...]) -> list[int]:
        """The tokens that are one of the words, whole."""
        tokenizer = self.processor.tokenizer
        ids = [tokenizer.encode(word, add_special_tokens=False) for word in words]
        whole = sorted({row[0] for row in ids if len(row) == 1 and row[0] != tokenizer.unk_token_id})
        if not whole:
            raise UserError(f"The tokenizer in {self.folder} has no token for {words[0]!r}.")
        return whole


def _load(folder: Path, needed: WeightFile) -> tuple[Any, Any]:
    """Processor and model of a folder, from plain tensors, without the network and without foreign code."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **here)
        config._attn_implementation = "sdpa"  # a config may name a kernel to fetch
        processor = AutoProcessor.from_pretrained(folder, **here)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, config=config, torch_dtype="auto", use_safetensors=True, attn_implementation="sdpa",
            output_loading_info=True, **here,
        )  # fmt: skip
        model, report = loaded
        gaps = [*report["missing_keys"], *report["mismatched_keys"]]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} cannot be loaded as {needed.what}: {reason} {needed.advice()}") from error
    if gaps:
        raise UserError(f"{folder} lacks {len(gaps)} weights, such as {gaps[0]!s}. {needed.advice()}")
    complete = all(hasattr(processor, part) for part in ("tokenizer", "image_processor"))
    if not complete or getattr(processor, "chat_template", None) is None:
        raise UserError(f"{folder} has no chat template for pictures: it is not {needed.what}.")
    return processor, model.eval()
