"""Rewards for videos: frames sampled evenly and reduced, flicker, motion, consistency."""

import pytest
import torch
import torch.nn.functional as F
from reference.rewards_formulas import MEAN, STD
from reference.rewards_tiny import aesthetic_head, hugging_face_clip, pictures, save, videos

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.video import sampled

TWO = ["", ""]


def moving(speed, frames=6, size=64, contrast=1.0):
    """A smooth pattern that moves right by `speed` pixels a frame, [1, frames, 3, size, size]."""
    x = torch.arange(size) - speed * torch.arange(frames)[:, None]  # [frames, size]
    wave = 0.5 + 0.5 * contrast * torch.sin(2 * torch.pi * x / 32)
    return wave[None, :, None, None, :].expand(1, frames, 3, size, size)


def test_a_picture_reward_on_a_video_is_the_mean_over_its_frames():
    reward, video = load_reward("brightness"), videos(2)
    frames = torch.stack([reward(video[:, index], TWO) for index in range(video.shape[1])])
    assert torch.allclose(reward(video, TWO), frames.mean(0))


def test_aesthetic_scores_videos_frame_by_frame(tmp_path):
    clip = save(hugging_face_clip("quick_gelu"), tmp_path / "clip.safetensors")
    reward = load_reward("aesthetic", weights=save(aesthetic_head(), tmp_path / "h.safetensors"), clip=clip)
    video = videos(2, 3)
    frames = torch.stack([reward(video[:, index], TWO) for index in range(3)])
    assert torch.allclose(reward(video, TWO), frames.mean(0), atol=1e-6)


@pytest.mark.parametrize("reduce", ["mean", "minimum", "softminimum"])
def test_frames_are_reduced_as_asked(reduce):
    video = videos(2, 5)
    frames = torch.stack([load_reward("brightness")(video[:, i], TWO) for i in (0, 2, 4)], 1)
    expected = {
        "mean": frames.mean(1),
        "minimum": frames.amin(1),
        "softminimum": -0.1 * torch.log(torch.exp(-frames / 0.1).mean(1)),
    }[reduce]
    reward = load_reward("video", reward="brightness", frames=3, reduce=reduce, temperature=0.1)
    assert torch.allclose(reward(video, TWO), expected, atol=1e-6)


def test_softminimum_lies_between_minimum_and_mean_and_pulls_most_at_the_worst_frame():
    video = videos(1, 4).requires_grad_(True)
    scores = {
        (reduce, t): load_reward("video", reward="brightness", reduce=reduce, temperature=t)(video, [""])
        for reduce, t in (("minimum", 1), ("softminimum", 0.01), ("softminimum", 100.0), ("mean", 1))
    }
    least, near_least, near_mean, mean = (score.item() for score in scores.values())
    assert least <= near_least < near_mean <= mean + 1e-6
    assert near_least - least < 0.02 and mean - near_mean < 1e-3
    scores["softminimum", 0.01].sum().backward()
    pull = video.grad.sum((0, 2, 3, 4))
    assert pull.argmax() == load_reward("brightness")(video[0], [""] * 4).argmin()
    assert (pull > 0).all()


def test_sampled_frames_are_spread_evenly_with_both_ends():
    assert sampled(9, 3) == [0, 4, 8]
    assert sampled(81, 8) == [0, 11, 23, 34, 46, 57, 69, 80]
    assert sampled(3, 8) == [0, 1, 2]
    assert sampled(7, 1) == [3]
    assert sampled(4, None) == [0, 1, 2, 3]


def test_a_black_box_on_frames_keeps_its_surrogate():
    reward = load_reward("video", reward="jpeg_compressibility", frames=2)
    video = videos(2)
    assert not reward.differentiable and reward.surrogate.differentiable
    proxy = load_reward("jpeg_compressibility").surrogate
    expected = (proxy(video[:, 0], TWO) + proxy(video[:, -1], TWO)) / 2
    assert torch.allclose(reward.surrogate(video, TWO), expected)


def test_flicker_is_vbenchs_formula():
    video = videos(2)
    in_bytes = (video * 255).diff(dim=1).abs().flatten(1).mean(1)
    assert torch.allclose(load_reward("temporal_flicker")(video, TWO), (255 - in_bytes) / 255, atol=1e-6)
    assert load_reward("temporal_flicker")(moving(0), [""]).item() == pytest.approx(1)


@pytest.mark.parametrize("contrast", [1.0, 0.3])
@pytest.mark.parametrize("speed", [0, 1, 2, 3])
def test_motion_is_the_speed_in_pixels_a_frame_whatever_the_contrast(speed, contrast):
    measured = load_reward("motion")(moving(speed, contrast=contrast), [""]).item()
    assert measured == pytest.approx(speed, rel=0.12, abs=0.01)


def test_enough_motion_earns_nothing_more():
    reward = load_reward("motion", enough=1.0)
    video = moving(3).clone().requires_grad_(True)
    assert reward(video, [""]).item() == pytest.approx(1.0)
    reward(video, [""]).sum().backward()
    assert video.grad.abs().max() == 0


def test_clip_consistency_is_the_mean_cosine_of_neighbors(tmp_path):
    model = hugging_face_clip("quick_gelu")
    reward = load_reward("clip_consistency", clip=save(model, tmp_path / "clip.safetensors"))
    video = pictures(6, 32, 32).unflatten(0, (2, 3))
    seen = model.vision_model(pixel_values=((video.flatten(0, 1) - MEAN) / STD)).pooler_output
    e = F.normalize(model.visual_projection(seen), dim=-1).unflatten(0, (2, 3))
    expected = torch.stack([F.cosine_similarity(e[:, i], e[:, i + 1]) for i in range(2)]).mean(0)
    assert torch.allclose(reward(video, TWO), expected, atol=1e-5)
    still = video[:, :1].expand(-1, 3, -1, -1, -1)
    assert torch.allclose(reward(still, TWO), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("name", ["temporal_flicker", "motion"])
def test_pictures_and_single_frames_are_refused(name):
    with pytest.raises(UserError, match=r"takes images \[B, F, 3, H, W\], not \[2, 3, 40, 56\]"):
        load_reward(name)(pictures(2), TWO)
    with pytest.raises(UserError, match="compares frames; this video has 1"):
        load_reward(name)(videos(2, 1), TWO)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="mean, minimum, softminimum, not 'max'"):
        load_reward("video", reward="brightness", reduce="max")
    with pytest.raises(UserError, match="frames must be at least 1"):
        load_reward("video", reward="brightness", frames=0)
    with pytest.raises(UserError, match="'motion' takes videos"):
        load_reward("video", reward="motion")
    with pytest.raises(UserError, match="enough must be above 0"):
        load_reward("motion", enough=0)
