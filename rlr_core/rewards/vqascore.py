"""VQAScore: how probable it is that CLIP-FlanT5 says "Yes" when asked if the picture shows the prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlr_core.errors import UserError
from rlr_core.rewards.base import Reward
from rlr_core.rewards.files import WeightFile, locate, read_tensors, select
from rlr_core.rewards.towers.clip import ImageTower
from rlr_core.rewards.towers.clip_layout import as_clip, read_clip
from rlr_core.rewards.towers.flan_t5 import PAD, flan_t5, patch_projector, t5_tokenizer
from rlr_core.rewards.towers.precision import as_dtype, recompute_activations
from rlr_core.rewards.towers.preprocess import pad_square

WEIGHTS = WeightFile(
    "weights",
    ("clip-flant5-xxl", "clip-flant5-xl", "clip-flant5-xxl.safetensors", "clip-flant5-xl.safetensors"),
    "CLIP-FlanT5 (T5 encoder and decoder, projector)",
    "https://huggingface.co/zhiqiulin/clip-flant5-xxl, or clip-flant5-xl (3 B, 6 GB), the whole folder",
)
TOKENIZER = WeightFile(
    "tokenizer",
    ("clip-flant5-xxl/tokenizer.json", "clip-flant5-xl/tokenizer.json", "t5-tokenizer.json"),
    "T5's tokenizer (tokenizer.json)",
    "https://huggingface.co/google/flan-t5-xl, or ComfyUI's comfy/text_encoders/t5_tokenizer",
)
VISION = WeightFile(
    "vision",
    ("clip-vit-large-patch14-336.safetensors", "clip-vit-large-patch14-336"),
    "OpenAI's CLIP ViT-L/14 at 336 pixels, image tower",
    "https://huggingface.co/openai/clip-vit-large-patch14-336 (model.safetensors, renamed)",
)

QUESTION = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: ",
    'Does this figure show "{}"? Please answer yes or no. ASSISTANT:',
)
ANSWER = "Yes"
MOST_TOKENS = 2048


class VQAScore(Reward):
    """exp(mean log p("Yes", end)) = sqrt(p(Yes) p(end | Yes)), between 0 and 1 (arXiv 2404.01291).

    The question is text, the picture's patches, text; each piece of text ends in T5's end token, as in the
    release. Patches come from the second-last layer of CLIP ViT-L/14-336, through a two-layer projector.
    The release runs its image tower without gradients; this one has them. float16 overflows in T5.
    """

    name = "vqascore"
    needs_prompt = True
    range = (0.0, 1.0)
    files = (WEIGHTS, TOKENIZER)

    def __init__(
        self,
        weights: str | os.PathLike | None = None,
        tokenizer: str | os.PathLike | None = None,
        vision: str | os.PathLike | None = None,
        dtype: str | torch.dtype | None = None,
        checkpointing: bool = False,
    ):
        """weights: CLIP-FlanT5's folder or file; tokenizer: T5's tokenizer.json; vision: the CLIP file,
        needed only when `weights` has no vision_tower; dtype: bfloat16 or float32, None is bfloat16 on an
        accelerator and float32 on the CPU; checkpointing: recompute activations on the way back.
        """
        self.dtype = as_dtype(dtype)
        if self.dtype is torch.float16:
            raise UserError("Reward 'vqascore' overflows in float16; use dtype bfloat16 or float32.")
        path = locate(WEIGHTS, weights)
        self.encode = t5_tokenizer(locate(TOKENIZER, tokenizer, beside=path), TOKENIZER)
        tensors = read_tensors(path, WEIGHTS)
        inside = select(tensors, "vision_tower.vision_tower.") or select(tensors, "vision_tower.")
        if inside:
            clip, needed = as_clip(inside, path, WEIGHTS, quick_gelu=True), WEIGHTS
        else:
            clip, needed = read_clip(locate(VISION, vision), VISION, quick_gelu=True), VISION
        self.tower = ImageTower(clip, needed, self.dtype or torch.float32, checkpointing)
        self.projector = patch_projector(select(tensors, "mm_projector."), path, WEIGHTS)
        own = {k: v for k, v in tensors.items() if not k.startswith(("vision_tower.", "mm_"))}
        self.t5 = flan_t5(own, path, WEIGHTS)
        self.t5.requires_grad_(False)
        if checkpointing:
            recompute_activations(self.t5)
        self.answer = self.encode(ANSWER)
        self.device: torch.device | None = None

    def to(self, device: torch.device | str) -> VQAScore:
        self.device = torch.device(device)
        dtype = self.dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.tower.dtype = dtype
        self.tower.to(self.device)
        with torch.inference_mode(False):
            self.projector.to(self.device, dtype)
            self.t5.to(self.device, dtype)
        return self

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.device is None:
            self.to(images.device)
        pixels = pad_square(images.to(self.device), self.tower.size)
        patches = self.tower.tokens(pixels, [self.tower.sizes.layers - 2])[:, 0]
        patches = self.projector(patches.to(self.t5.dtype))  # [B, N, d_model]
        embeddings, mask = self._questions(patches, prompts)
        answer = torch.tensor(self.answer, device=self.device)
        start = torch.tensor([PAD, *self.answer[:-1]], device=self.device).expand(len(prompts), -1)
        logits = self.t5(inputs_embeds=embeddings, attention_mask=mask, decoder_input_ids=start).logits
        log_p = logits.float().log_softmax(-1)  # [B, len(answer), vocabulary]
        return log_p.gather(-1, answer.expand(len(prompts), -1)[..., None]).mean((1, 2)).exp()

    def _questions(self, patches: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embedded questions [B, L, d_model], shorter ones padded at the end, and their mask [B, L]."""
        before = self.encode(QUESTION[0])
        rows = []
        for picture, prompt in zip(patches, prompts, strict=True):
            # The release cuts the tokens, the picture counted as one, so a long prompt loses its end.
            after = self.encode(QUESTION[1].format(prompt))[: MOST_TOKENS - len(before) - 1]
            words = [self.t5.shared(torch.tensor(ids, device=self.device)) for ids in (before, after)]
            rows.append(torch.cat([words[0], picture, words[1]]))
        embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return embeddings, (torch.arange(embeddings.shape[1], device=self.device) < lengths[:, None]).long()
