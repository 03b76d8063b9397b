"""What holds for every reward: it says no early, imports little, and takes any callable."""

import subprocess
import sys

import pytest
import torch
from reference.rewards_tiny import open_clip_model, pictures, save

from rlr_core.errors import UserError
from rlr_core.rewards import REWARDS, load_reward, reward_class
from rlr_core.rewards.base import Reward

OURS = [name for name, entry in REWARDS.items() if entry.target.startswith("rlr_core.rewards")]


def call(images, prompts):
    return load_reward("brightness")(images, prompts)


def test_a_batch_that_does_not_match_its_prompts_is_refused():
    with pytest.raises(UserError, match="got 2 images and 3 prompts"):
        call(pictures(2), ["a", "b", "c"])


@pytest.mark.parametrize(
    "images, seen", [(pictures(2) * 2 - 1, r"\[-0\.9"), (pictures(2) * 255, r", 25\d\]")]
)
def test_pixels_outside_0_to_1_are_refused_with_the_range_seen(images, seen):
    with pytest.raises(UserError, match=r"takes pixels in \[0, 1\]; these span .*" + seen):
        call(images, ["a", "b"])


def test_pixels_that_are_not_numbers_are_refused():
    images = pictures(2)
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="these span .nan, nan"):
        call(images, ["a", "b"])


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 8, 3), (1, 2, 2, 3, 8, 8), (2, 4, 8, 8)])
def test_a_wrong_shape_is_refused_with_the_shape(shape):
    with pytest.raises(UserError, match=rf"takes images \[B, 3, H, W\].*not \[{shape[0]}, "):
        call(torch.zeros(shape), ["a"] * shape[0])


def test_whole_numbers_and_empty_batches_are_refused():
    with pytest.raises(UserError, match=r"not torch\.uint8; divide by 255"):
        call(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"])
    with pytest.raises(UserError, match="got no pixels"):
        call(torch.zeros(0, 3, 8, 8), [])


def test_an_empty_prompt_is_refused_where_the_prompt_counts(tmp_path):
    reward = load_reward("hpsv2", weights=save(open_clip_model(), tmp_path / "clip.safetensors"))
    with pytest.raises(UserError, match="'hpsv2' needs a prompt; picture 1 has an empty one"):
        reward(pictures(2), ["a", "  "])
    assert load_reward("brightness")(pictures(2), ["a", ""]).shape == (2,)


def test_a_reward_must_return_one_finite_number_a_picture():
    with pytest.raises(UserError, match=r"'mean' returned shape \[\] for 2 pictures"):
        load_reward(lambda images, prompts: images.mean(), name="mean")(pictures(2), ["a", "b"])
    with pytest.raises(UserError, match=r"gave nan for picture 1 \(prompt 'b'\)"):
        load_reward(lambda *_: torch.tensor([1.0, float("nan")]), name="bad")(pictures(2), ["a", "b"])


def test_any_callable_is_a_reward_and_its_gradient_is_found_out():
    smooth = load_reward(lambda images, prompts: images.mean((1, 2, 3)))
    box = load_reward(lambda images, prompts: [image.mean().item() for image in images])
    with torch.inference_mode():
        found_out = load_reward(lambda images, prompts: images.mean((1, 2, 3)))
    assert (smooth.differentiable, box.differentiable, found_out.differentiable) == (True, False, True)
    assert torch.allclose(smooth(pictures(2), ["", ""]), box(pictures(2), ["", ""]))
    assert load_reward(smooth) is smooth


def test_an_unknown_reward_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="Unknown reward 'esthetic'.*Did you mean 'aesthetic'"):
        load_reward("esthetic")


def test_an_unknown_or_missing_option_is_named():
    with pytest.raises(UserError, match="'brightness' has no option 'speed'; its options: none"):
        load_reward("brightness", speed=3)
    with pytest.raises(UserError, match="has no option 'enuf'; its options: enough, halvings.*mean 'enough'"):
        load_reward("motion", enuf=3)
    with pytest.raises(UserError, match="'target_picture' needs the option 'target'"):
        load_reward("target_picture")


@pytest.mark.parametrize("name", OURS)
def test_every_reward_is_complete(name):
    factory = reward_class(name)
    assert issubclass(factory, Reward) and factory.__doc__
    assert factory.takes in ("pictures", "videos", "any")
    low, high = factory.range
    assert low < high
    if name != "video":  # named after the reward it samples frames for
        assert factory.name == name
    for file in factory.files:
        assert file.names and file.what and file.source.startswith("https://")


def test_importing_the_rewards_imports_nothing_heavy():
    heavy = ("torch", "open_clip", "timm", "transformers", "torchvision", "PIL", "numpy")
    code = f"import sys, rlr_core.rewards; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_reward_without_weights_needs_no_reward_library():
    heavy = ("open_clip", "timm", "transformers", "torchvision")
    code = (
        "import sys; from rlr_core.rewards import load_reward; load_reward('jpeg_compressibility');"
        f"load_reward('combine', rewards=['brightness']); print([n for n in {heavy} if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
