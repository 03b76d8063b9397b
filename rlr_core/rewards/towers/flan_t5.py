"""CLIP-FlanT5's language half, frozen: tokenizer, projector of the picture's patches, Flan-T5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlr_core.errors import UserError
from rlr_core.rewards.files import WeightFile, fill, wrong_architecture
from rlr_core.rewards.towers.clip import on_no_memory

PAD, END = 0, 1  # T5's tokens; the decoder starts from PAD


def t5_tokenizer(path: Path, needed: WeightFile) -> Callable[[str], list[int]]:
    """Text to T5's token ids, the end token last, from a tokenizer.json."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for a file it cannot read
        raise UserError(f"{path} is not {needed.what}. {needed.advice()}") from error

    def encode(text: str) -> list[int]:
        # SentencePiece drops surplus white space; the fast tokenizer would not.
        return [*tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids, END]

    return encode


def patch_projector(tensors: dict[str, Tensor], path: Path, needed: WeightFile) -> nn.Module:
    """Patches to T5's embeddings: Linear, GELU, Linear."""
    if "0.weight" not in tensors or "2.weight" not in tensors:
        raise wrong_architecture(path, needed, missing=["mm_projector.0.weight"])
    (middle, width), out = tensors["0.weight"].shape, tensors["2.weight"].shape[0]
    with on_no_memory():
        network = nn.Sequential(nn.Linear(width, middle), nn.GELU(), nn.Linear(middle, out))
    return fill(network, tensors, path, needed)


def flan_t5(tensors: dict[str, Tensor], path: Path, needed: WeightFile) -> Any:
    """Flan-T5 (gated GELU, input and output embeddings apart), its sizes read off the tensors' shapes."""
    from transformers import T5Config, T5ForConditionalGeneration

    first = "encoder.block.0.layer.0.SelfAttention"
    names = ("shared.weight", f"{first}.relative_attention_bias.weight")
    names = (*names, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise wrong_architecture(path, needed, missing)
    shared, bias, gate = (tensors[name] for name in names)
    vocabulary, width = shared.shape
    buckets, heads = bias.shape
    attention = [name for name in tensors if name.endswith("SelfAttention.q.weight")]
    # Transformers 5 reads from this option not to scale the decoder's output, and no more.
    not_scaled: dict[str, Any] = {"tie_word_embeddings": False}
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=tensors[f"{first}.q.weight"].shape[0] // heads,
        d_ff=gate.shape[0],
        num_layers=sum(name.startswith("encoder.") for name in attention),
        num_decoder_layers=sum(name.startswith("decoder.") for name in attention),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
        **not_scaled,
    )
    with on_no_memory():
        network = T5ForConditionalGeneration(config)
    everything = {**tensors, "encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared}
    everything.pop("embed_tokens.weight", None)  # the release's second name for the same table
    return fill(network, everything, path, needed)
