"""The real architectures at their real size, random weights, against the references. One at a time.

python -m pytest tests/rewards/test_big.py -m big -s -k vit_h
"""

import pytest
import torch
import torch.nn.functional as F
from reference import rewards_formulas as reference
from reference.rewards_tiny import PROMPTS, aesthetic_head, image_reward_tensors, pictures, save, t5_tokenizer

from rlr_core.rewards import load_reward

pytestmark = pytest.mark.big


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = ("float16", "bfloat16")


def _gradient(reward, images, prompts):
    pixels = images.clone().to(DEVICE).requires_grad_(True)  # a copy: .to() may give the same tensor back
    scores = reward.to(DEVICE)(pixels, prompts)
    scores.sum().backward()
    assert torch.isfinite(pixels.grad).all()
    return scores.detach().cpu(), pixels.grad.flatten()


def _compare(name, expected, images, prompts, tolerance, **options):
    """Check the score in all precisions against `expected`, and the half ones' gradients against float32's.

    On a CPU the float16 gradient is left out: torch has no fast matrix product for it there (half a minute
    for one of a ViT-L's), and the tiny models of the other tests cover it.
    """
    exact, slope = _gradient(load_reward(name, dtype="float32", **options), images, prompts)
    report = [f"float32 off by {(exact - expected).abs().max():.1e}"]
    assert torch.allclose(exact.double(), expected.double(), atol=tolerance["float32"])
    for dtype in HALVES:
        reward = load_reward(name, dtype=dtype, **options).to(DEVICE)
        if dtype == "float16" and DEVICE == "cpu":
            with torch.no_grad():
                rough, cosine = reward(images, prompts), None
        else:
            rough, rough_slope = _gradient(reward, images, prompts)
            cosine = F.cosine_similarity(slope, rough_slope, dim=0).item()
            assert cosine > 0.99
        report.append(f"{dtype} by {(rough.cpu() - expected).abs().max():.1e} (gradient cosine {cosine})")
        assert torch.allclose(rough.cpu().double(), expected.double(), atol=tolerance[dtype])
    print(f"\n{name} on {DEVICE}: score {expected.flatten()[0]:.5f}; {', '.join(report)}", flush=True)


def _hugging_face_clip(width, layers, heads, text_width, text_layers, projection, activation):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    return CLIPModel(
        CLIPConfig(
            projection_dim=projection,
            vision_config={
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "image_size": 224,
                "patch_size": 14,
                "hidden_act": activation,
            },
            text_config={
                "hidden_size": text_width,
                "intermediate_size": 4 * text_width,
                "num_hidden_layers": text_layers,
                "num_attention_heads": text_width // 64,
                "hidden_act": activation,
                "bos_token_id": 49406,
                "eos_token_id": 49407,
            },
        )
    ).eval()


def test_vit_l_aesthetic(tmp_path):
    """OpenAI's ViT-L/14 in Hugging Face's layout, float16 file."""
    model = _hugging_face_clip(1024, 24, 16, 768, 12, 768, "quick_gelu").half()
    clip = save(model, tmp_path / "clip.safetensors")
    head = aesthetic_head(768)
    options = {"weights": save(head, tmp_path / "head.safetensors"), "clip": clip}
    model.float()
    images = pictures(1, 224, 224)
    with torch.no_grad():
        seen = model.vision_model(pixel_values=(images - reference.MEAN) / reference.STD).pooler_output
        expected = reference.aesthetic(model.visual_projection(seen), head)
    tolerance = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}
    _compare("aesthetic", expected, images, [""], tolerance, **options)


def test_vit_h_pickscore(tmp_path):
    """PickScore's ViT-H/14 in Hugging Face's layout, float16 file."""
    from open_clip.tokenizer import SimpleTokenizer

    model = _hugging_face_clip(1280, 32, 16, 1024, 24, 1024, "gelu").half()
    path = save(model, tmp_path / "PickScore_v1.safetensors")
    model.float()
    images = pictures(1, 224, 224)
    with torch.no_grad():
        pair = reference.hugging_face_embeddings(model, images, SimpleTokenizer()(PROMPTS[:1]))
        expected = model.logit_scale.exp() * reference.cosine(*pair)
    del model
    tolerance = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.2}
    _compare("pickscore", expected, images, PROMPTS[:1], tolerance, weights=path)


def test_image_reward(tmp_path):
    """BLIP ViT-L/16, BERT-base with cross-attention, the MLP: 0.45 B parameters."""
    tensors = image_reward_tensors((224, 16, 1024, 24), (768, 12), vocabulary=30524)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat"]
    words += [f"word{index}" for index in range(30522 - len(words))]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    options = {
        "weights": save(tensors, tmp_path / "ImageReward.safetensors"),
        "vocabulary": tmp_path / "vocab.txt",
    }
    images, tokens = pictures(1, 224, 224), torch.tensor([[2, 5, 6, 7, 5, 8, 3] + [0] * 28])
    with torch.no_grad():
        expected = reference.image_reward(tensors, images, tokens, tokens != 0)
    del tensors
    prompt = ["a photo of a cat"]
    tolerance = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
    _compare("image_reward", expected, images, prompt, tolerance, **options)


def _random_weights(module, seed=0):
    """Cheap random weights for billions of parameters: a random stretch, repeated; norms 1, biases 0."""
    stretch = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)).bfloat16()
    state = {}
    for name, value in module.state_dict().items():
        if value.ndim < 2:
            state[name] = torch.full(value.shape, float(name.endswith("weight")), dtype=torch.bfloat16)
        else:
            copies = -(-value.numel() // len(stretch))
            flat = stretch.repeat(copies)[: value.numel()]
            state[name] = (flat * value.shape[-1] ** -0.5).view(value.shape)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if name in state:
            state[name] = state["shared.weight"]
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def test_vqascore_xl(tmp_path):
    """CLIP ViT-L/14-336, projector, Flan-T5-XL: 3 B parameters in bfloat16, as the release runs them."""
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        T5Config,
        T5ForConditionalGeneration,
    )

    with init_empty_weights(include_buffers=False):
        t5 = T5ForConditionalGeneration(
            T5Config(
                d_model=2048,
                d_kv=64,
                d_ff=5120,
                num_layers=24,
                num_decoder_layers=24,
                num_heads=32,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=0,
                dropout_rate=0.0,
            )
        )
        config = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            hidden_act="quick_gelu",
        )
        vision = CLIPVisionModelWithProjection(config).vision_model
    _random_weights(t5), _random_weights(vision, seed=1)
    shapes = {"0.weight": (2048, 1024), "0.bias": (2048,), "2.weight": (2048, 2048), "2.bias": (2048,)}
    projector = {name: (0.02 * torch.randn(shape)).bfloat16() for name, shape in shapes.items()}
    tensors = {k: v for k, v in t5.state_dict().items() if "embed_tokens" not in k}
    tensors |= {f"mm_projector.{k}": v for k, v in projector.items()}
    tensors |= {f"vision_tower.vision_tower.vision_model.{k}": v for k, v in vision.state_dict().items()}
    save_file(tensors, tmp_path / "clip-flant5-xl.safetensors")
    del tensors
    tokenizer = t5_tokenizer(tmp_path / "tokenizer.json")
    reward = load_reward(
        "vqascore", weights=tmp_path / "clip-flant5-xl.safetensors", tokenizer=tokenizer, dtype="bfloat16"
    )
    image = pictures(1, 336, 336)
    from rlr_core.rewards.vqascore import QUESTION

    before, after = reward.encode(QUESTION[0]), reward.encode(QUESTION[1].format("a cat"))
    with torch.no_grad():
        pixels = ((image - reference.MEAN) / reference.STD).bfloat16()
        patches = vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        hidden = F.gelu(F.linear(patches, projector["0.weight"], projector["0.bias"]))
        patches = F.linear(hidden, projector["2.weight"], projector["2.bias"])
        table = t5.shared.weight
        embeddings = torch.cat([table[before][None], patches, table[after][None]], 1)
        answer = torch.tensor([reward.answer])
        logits = t5(inputs_embeds=embeddings, labels=answer).logits
        expected = (-F.cross_entropy(logits[0].float(), answer[0])).exp()  # in float32, as under autocast
    del t5
    score, slope = _gradient(reward, image, ["a cat"])
    off = (score / expected - 1).item()
    print(
        f"\nvqascore on {DEVICE}: {expected.item():.4e}, off by {off:.1e} of it; gradient {slope.norm():.1e}"
    )
    assert torch.allclose(score, expected, rtol=0.03)
    assert slope.abs().max() > 0
