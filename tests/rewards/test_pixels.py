"""Rewards without weights: each measures what it says, and its gradient is its derivative."""

import io

import numpy
import pytest
import torch
from PIL import Image
from reference.rewards_tiny import hugging_face_clip, pictures, save, videos

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward

WEIGHTLESS = {
    "mean_color": {"channel": "green"},
    "brightness": {},
    "saturation": {},
    "contrast": {},
    "sharpness": {},
    "total_variation": {},
    "target_color": {"color": "teal"},
    "target_picture": {"target": pictures(1, 20, 33, seed=9)[0]},
}
FOR_VIDEOS = {"temporal_flicker": {}, "motion": {"halvings": 1}}


def flat(*color):
    return torch.tensor(color)[:, None, None].expand(3, 32, 32)


def score(name, *images, **options):
    return load_reward(name, **options)(torch.stack(images), [""] * len(images)).tolist()


def checkerboard(size=32):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((x + y) % 2).float().expand(3, size, size)


@pytest.mark.parametrize("name", [*WEIGHTLESS, *FOR_VIDEOS])
def test_the_gradient_is_the_derivative(name):
    options = {**WEIGHTLESS, **FOR_VIDEOS}[name]
    reward = load_reward(name, **options)
    torch.manual_seed(0)
    images = 0.3 + 0.4 * (videos(2) if name in FOR_VIDEOS else torch.rand(2, 3, 24, 24))
    images.requires_grad_(True)
    reward(images, ["", ""]).sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    direction, step = images.grad / images.grad.norm(), 2e-3
    with torch.no_grad():
        high, low = (reward(images + s * direction, ["", ""]).double().sum() for s in (step, -step))
    assert ((high - low) / (2 * step)).item() == pytest.approx(images.grad.norm().item(), rel=0.02)


@pytest.mark.parametrize("name", [*WEIGHTLESS, *FOR_VIDEOS])
def test_climbing_the_gradient_raises_the_reward(name):
    """From noise, fifty small steps."""
    options = {**WEIGHTLESS, **FOR_VIDEOS}[name]
    reward = load_reward(name, **options)
    torch.manual_seed(1)
    images = torch.rand(1, 4, 3, 16, 16) if name in FOR_VIDEOS else torch.rand(1, 3, 16, 16)
    before = reward(images, [""])
    for _ in range(50):
        images.requires_grad_(True)
        (slope,) = torch.autograd.grad(reward(images, [""]).sum(), images)
        images = (images.detach() + 0.01 * slope / slope.abs().max()).clamp(0, 1)
    assert (reward(images, [""]) - before).item() > 0.005


@pytest.mark.parametrize("name", [*WEIGHTLESS, *FOR_VIDEOS])
def test_the_gradient_of_a_flat_picture_is_finite(name):
    options = {**WEIGHTLESS, **FOR_VIDEOS}[name]
    images = torch.full((1, 4, 3, 16, 16) if name in FOR_VIDEOS else (1, 3, 16, 16), 0.5, requires_grad=True)
    load_reward(name, **options)(images, [""]).sum().backward()
    assert torch.isfinite(images.grad).all()


def test_mean_color_prefers_its_channel_and_not_white():
    red, white, black = flat(1.0, 0.0, 0.0), flat(1.0, 1.0, 1.0), flat(0.0, 0.0, 0.0)
    assert score("mean_color", red, white, black, channel="red") == pytest.approx([1, 0, 0])
    assert score("mean_color", red, channel="blue") == pytest.approx([-0.5])


def test_brightness_is_the_luma_that_pil_computes():
    image = (pictures(1) * 255).round()[0] / 255
    pil = Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).convert("L")
    expected = numpy.asarray(pil).mean() / 255
    assert score("brightness", image)[0] == pytest.approx(expected, abs=2 / 255)


def test_saturation_is_0_for_grey_and_1_for_a_pure_color():
    assert score("saturation", flat(0.4, 0.4, 0.4), flat(0.0, 1.0, 0.0)) == pytest.approx([0, 1])


def test_contrast_is_a_half_for_black_and_white_and_0_for_grey():
    assert score("contrast", checkerboard(), flat(0.4, 0.4, 0.4)) == pytest.approx([0.5, 0], abs=2e-4)


def test_sharpness_is_4_for_a_checkerboard_and_0_for_a_ramp():
    ramp = torch.linspace(0, 1, 32).expand(3, 32, 32)
    assert score("sharpness", checkerboard(), ramp) == pytest.approx([4, 0], abs=2e-4)


def test_total_variation_is_minus_2_for_a_checkerboard_and_0_for_a_flat_picture():
    assert score("total_variation", checkerboard(), flat(0.1, 0.9, 0.4)) == pytest.approx([-2, 0])


def test_target_color_takes_names_codes_and_numbers():
    orange = flat(1.0, 128 / 255, 0.0)
    for color in ("#ff8000", (1.0, 128 / 255, 0.0)):
        assert score("target_color", orange, color=color) == pytest.approx([0], abs=1e-9)
    assert score("target_color", flat(0.0, 0.0, 0.0), color="white") == pytest.approx([-1])
    with pytest.raises(UserError, match="'reddish' is not a color"):
        load_reward("target_color", color="reddish")
    with pytest.raises(UserError, match=r"three numbers in \[0, 1\]"):
        load_reward("target_color", color=(255, 0, 0))


def test_target_picture_is_0_at_the_target_whatever_its_size(tmp_path):
    target = (pictures(1, 60, 90)[0] * 255).round() / 255
    Image.fromarray((target * 255).byte().permute(1, 2, 0).numpy()).save(tmp_path / "t.png")
    other = pictures(1, 60, 90, seed=3)[0]
    at_target, away = score("target_picture", target, other, target=tmp_path / "t.png")
    assert at_target == pytest.approx(0, abs=1e-9)
    assert away == pytest.approx(-(target - other).square().mean().item(), rel=1e-4)
    half = torch.nn.functional.interpolate(target[None], scale_factor=0.5, mode="area")[0]
    assert score("target_picture", half, target=target)[0] > -1e-3


def test_target_picture_measures_in_the_features_of_a_lent_or_loaded_tower(tmp_path):
    """0 at the target, more for another picture than for a shade of it."""
    path = save(hugging_face_clip(), tmp_path / "clip.safetensors")
    lender = load_reward("clip_score", weights=path)
    target, other = pictures(2, 32, 32)
    for features in (lender, path):
        same, shade, away = score(
            "target_picture", target, 0.9 * target, other, target=target, features=features
        )
        assert same == pytest.approx(0, abs=1e-9)
        assert away < shade < 0
    pixels = other[None].clone().requires_grad_(True)
    load_reward("target_picture", target=target, features=lender)(pixels, [""]).sum().backward()
    assert torch.isfinite(pixels.grad).all() and pixels.grad.abs().max() > 0
    with pytest.raises(UserError, match="'brightness' has no image tower to lend"):
        load_reward("target_picture", target=target, features=load_reward("brightness"))


def test_a_target_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "t.png").write_text("no")
    with pytest.raises(UserError, match="t.png is not an image"):
        load_reward("target_picture", target=tmp_path / "t.png")


def test_jpeg_reward_is_the_size_that_pil_writes():
    image = (pictures(1, 48, 40) * 255).round() / 255
    file = io.BytesIO()
    Image.fromarray((image[0] * 255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    kilobytes = len(file.getvalue()) / 1000
    assert score("jpeg_incompressibility", image[0]) == pytest.approx([kilobytes])
    assert score("jpeg_compressibility", image[0]) == pytest.approx([-kilobytes])
    assert not load_reward("jpeg_compressibility").differentiable
    with pytest.raises(UserError, match="quality must be in 1..100, not 0"):
        load_reward("jpeg_compressibility", quality=0)


def _assorted(count=48, size=50):
    """Pictures from smooth to noisy, gray and colored, faint and strong; 50 is no multiple of 16."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for index in range(count):
        cells = int(torch.randint(2, size, (), generator=generator))
        coarse = torch.rand(1, 3, cells, cells, generator=generator)
        image = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0]
        if index % 3 == 0:
            image = image.mean(0, keepdim=True).expand(3, -1, -1)
        if index % 4 == 0:
            image = image.round()
        strength = torch.rand((), generator=generator)
        out.append(0.5 + strength * (image - 0.5))
    return torch.stack(out)


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_the_jpeg_surrogate_follows_the_exact_size(quality):
    images = _assorted()
    reward = load_reward("jpeg_compressibility", quality=quality)
    exact, proxy = reward(images, [""] * len(images)), reward.surrogate(images, [""] * len(images))
    ranks = torch.stack([exact.argsort().argsort(), proxy.argsort().argsort()]).float()
    assert torch.corrcoef(ranks)[0, 1] > 0.98
    correlation = torch.corrcoef(torch.stack([exact, proxy]))[0, 1]
    assert correlation > 0.98
    slope = correlation * exact.std() / proxy.std()
    assert 0.7 < slope < 1.5  # the same unit, kilobytes


def test_climbing_the_jpeg_surrogate_shrinks_the_exact_size():
    reward = load_reward("jpeg_compressibility")
    images = 0.2 + 0.6 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = reward(images, ["", ""])
    for _ in range(30):
        images.requires_grad_(True)
        (slope,) = torch.autograd.grad(reward.surrogate(images, ["", ""]).sum(), images)
        assert torch.isfinite(slope).all()
        images = (images.detach() + 0.01 * slope.sign()).clamp(0, 1)
    header = reward(torch.full((1, 3, 32, 32), 0.5), [""])  # what even a flat picture costs
    assert (reward(images, ["", ""]) - header > 0.8 * (before - header)).all()  # negative: a fifth smaller


def test_picture_by_picture_is_exact_for_every_weightless_reward():
    images = pictures(3)
    for name, options in {**WEIGHTLESS, "jpeg_compressibility": {}}.items():
        reward = load_reward(name, **options)
        together = reward(images, [""] * 3)
        apart = torch.cat([reward(image[None], [""]) for image in images])
        assert torch.allclose(together, apart, atol=1e-6), name
