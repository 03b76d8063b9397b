"""Resizing keeps the aspect ratio as each reference does, to the pixel, and lets gradients through."""

import pytest
import torch
from reference.rewards_formulas import (
    clip_preprocess,
    hps_preprocess,
    hugging_face_preprocess,
    llava_preprocess,
)
from reference.rewards_tiny import pictures

from rlr_core.rewards.towers.preprocess import crop_shorter_side, pad_longer_side, pad_square

SIZES = [(300, 300), (224, 224), (150, 401), (401, 150), (225, 224), (37, 512), (100, 90)]
WAYS = {
    "openai": (crop_shorter_side, clip_preprocess),
    "transformers": (lambda x, size: crop_shorter_side(x, size, offset="floor"), hugging_face_preprocess),
    "hpsv2": (pad_longer_side, hps_preprocess),
    "llava": (pad_square, llava_preprocess),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("height, width", SIZES)
def test_pictures_come_out_as_the_reference_makes_them(way, height, width):
    ours, reference = WAYS[way]
    picture = pictures(1, height, width, seed=height)[0]
    expected = reference(picture, 224)
    actual = ours(picture[None], 224)[0]
    assert actual.shape == expected.shape == (3, 224, 224)
    assert (actual - expected).abs().mean() < 1 / 255
    assert (actual - expected).abs().max() < 3 / 255


@pytest.mark.parametrize("way", WAYS)
def test_noise_and_hard_edges_come_out_as_the_reference_makes_them(way):
    ours, reference = WAYS[way]
    picture = torch.rand(3, 300, 420, generator=torch.Generator().manual_seed(0)).round()
    difference = (ours(picture[None], 224)[0] - reference(picture, 224)).abs()
    assert difference.mean() < 1 / 255
    assert difference.max() < 3 / 255


@pytest.mark.parametrize("way", WAYS)
def test_a_circle_stays_round(way):
    """No way of fitting squashes: a disc in a wide picture is as wide as it is high."""
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(500.0), indexing="ij")
    disc = ((y - 100) ** 2 + (x - 250) ** 2 < 60**2).float().expand(1, 3, -1, -1)
    fitted = WAYS[way][0](disc, 224)[0, 0] > 0.9
    # the bars of mean color are below 0.9
    wide, high = fitted.any(0).sum(), fitted.any(1).sum()
    assert high > 20
    assert abs(int(wide) - int(high)) <= 1


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_reaches_every_pixel_that_is_not_cut_off(way):
    picture = pictures(1, 60, 90).requires_grad_(True)
    WAYS[way][0](picture, 32).square().sum().backward()
    assert torch.isfinite(picture.grad).all()
    kept = picture.grad[..., 20:70] if way in ("openai", "transformers") else picture.grad
    assert (kept != 0).float().mean() > 0.99
