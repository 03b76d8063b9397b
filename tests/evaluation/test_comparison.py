"""A comparison samples every variant alike, leaves the model as it was, and says who wins."""

from __future__ import annotations

import pytest
import torch
from tiny_flow import TinyFlow

from rlr_core.config import SamplerConfig
from rlr_core.errors import UserError
from rlr_core.evaluation import plots, sampling
from rlr_core.evaluation.comparison import Variant, compare, compare_pictures
from rlr_core.lora.attach import attach, check_free

PROMPTS = ["a red circle", "a cat", "a very long prompt that goes on and on about nothing at all " * 3]
SAMPLER = SamplerConfig(steps=3)


def redness(images, prompts):
    return images[:, 0].mean((1, 2))


@pytest.fixture
def lora(tmp_path):
    model = TinyFlow()
    adapter = attach(model, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return adapter.save(tmp_path / "lora.safetensors")


def test_each_variant_is_what_evaluate_says_of_it_and_the_model_is_left_free(lora):
    model = TinyFlow()
    found = compare(
        model,
        [Variant("base"), Variant("half", lora, 0.5), Variant("none", lora, 0.0)],
        {"red": redness},
        PROMPTS,
        SAMPLER,
        samples=12,
        keep=12,
    )
    check_free(model)
    base = sampling.evaluate(TinyFlow(), {"red": redness}, PROMPTS, SAMPLER, samples=12)
    assert torch.equal(found.evaluations["base"].scores["red"], base.scores["red"])
    assert torch.equal(found.evaluations["none"].scores["red"], base.scores["red"])
    wins = found.win_rate("half", "red")
    exact = (found.evaluations["half"].scores["red"] > base.scores["red"]).float().mean()
    assert wins.mean == pytest.approx(exact) and wins.low < wins.mean < wins.high or wins.mean in (0, 1)
    assert found.win_rate("none", "red").mean == 0.5  # every picture is the same: all ties
    assert found.gain("none", "red") == (0.0, 0.0, 0.0)
    assert (found.first, found.others, found.rewards) == ("base", ["half", "none"], ["red"])


def test_an_error_leaves_the_model_free(lora):
    def broken(images, prompts):
        raise RuntimeError("no")

    model = TinyFlow()
    with pytest.raises(RuntimeError, match="no"):
        compare(model, [Variant("a", lora), Variant("b")], {"broken": broken}, PROMPTS, SAMPLER, samples=4)
    check_free(model)


def test_pictures_at_hand_are_compared_alike():
    dark, light = torch.rand(4, 3, 8, 8) / 2, 0.5 + torch.rand(4, 3, 8, 8) / 2
    found = compare_pictures({"dark": dark, "light": light}, {"b": "brightness"}, ["a", "a", "b", "c"])
    assert found.win_rate("light", "b").mean == 1.0 and found.gain("light", "b").low > 0
    with pytest.raises(UserError, match="'dark' has 4 pictures for 3 prompts"):
        compare_pictures({"dark": dark, "light": light}, {"b": "brightness"}, ["a", "b", "c"])
    with pytest.raises(UserError, match="takes two or more, not 1"):
        compare_pictures({"dark": dark}, {"b": "brightness"}, ["a"] * 4)
    with pytest.raises(UserError, match="'x' is there twice"):
        compare(TinyFlow(), [Variant("x"), Variant("x")], {"b": "brightness"}, PROMPTS)


@pytest.mark.parametrize("count", [1, 5])
def test_the_grid_has_a_row_a_pair_and_frames_the_better_one(tmp_path, count):
    from PIL import Image

    dark, light = torch.full((count, 3, 16, 24), 0.2), torch.full((count, 3, 16, 24), 0.7)
    prompts = [f"{PROMPTS[2]} {i}" for i in range(count)]
    found = compare_pictures({"dark": dark, "light": light}, {"b": "brightness"}, prompts)
    plots.plot_comparison(found, tmp_path / "grid.png", "b")
    pixels = torch.frombuffer(
        bytearray(Image.open(tmp_path / "grid.png").convert("RGB").tobytes()), dtype=torch.uint8
    )
    width, height = Image.open(tmp_path / "grid.png").size
    pixels = pixels.view(height, width, 3).int()
    blue = (pixels - torch.tensor([0x00, 0x72, 0xB2])).abs().amax(-1) < 3
    columns = blue.any(0).nonzero().flatten()
    shade = (pixels - round(0.7 * 255)).abs().amax(-1) < 3
    left = shade.any(0).nonzero().flatten()[0]
    assert columns[0] >= left - 8  # the frame is around the light picture, in the second column
    rows = blue[:, columns[0] + 1]
    assert ((rows[1:] > rows[:-1]).sum() + int(rows[0])) == count
