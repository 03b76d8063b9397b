"""What a person names as a reward is that reward, with its own options, or a sentence that says why not."""

import os

import pytest
import torch
from reference.rewards_tiny import open_clip_model, pictures, save, videos

from rlr_core.errors import UserError
from rlr_core.rewards import ALIASES, REWARDS, load_reward, reward_class
from rlr_core.rewards.options import fits, in_words

BLUE = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 8, 8)


def test_a_name_with_its_options_is_the_same_in_either_way_of_writing():
    for reward in (
        load_reward("mean_color", channel="blue"),
        load_reward({"mean_color": {"channel": "blue"}}),
        load_reward({"mean_color": None}, channel="blue"),
    ):
        assert reward(BLUE, [""]).item() == pytest.approx(1)


def test_options_reach_the_rewards_inside_others():
    inside = {"mean_color": {"channel": "blue"}}
    combined = load_reward("combine", rewards=[inside, {"target_color": {"color": "blue"}}], normalize=False)
    assert combined(BLUE, [""]).item() == pytest.approx(1)
    video = load_reward("video", reward=inside)
    assert video(BLUE[:, None].expand(1, 3, 3, 8, 8), [""]).item() == pytest.approx(1)


def test_options_for_a_reward_that_is_built_are_refused_and_not_ignored():
    with pytest.raises(UserError, match=r"'motion' is built already, so it takes no options \(enough\)"):
        load_reward(load_reward("motion"), enough=1)


@pytest.mark.parametrize(
    "reward, options, sentence",
    [
        ({"a": {}, "b": {}}, {}, "one name, not"),
        ({"motion": 3}, {}, r"options of reward 'motion' are \{option: value\}, not 3"),
        ({"motion": {"enough": 1}}, {"halvings": 1}, "options in two places: enough; halvings"),
        (5, {}, "A reward is a name, {name: options} or a callable, not 5"),
        (None, {}, "or a callable, not None"),
        ("motion", {"halvings": "2"}, "'motion': halvings must be a whole number, not '2'"),
        ("motion", {"halvings": True}, "halvings must be a whole number, not True"),
        ("motion", {"enough": float("nan")}, "enough must be a number or none, not nan"),
        ("video", {"reward": "brightness", "frames": 2.5}, "frames must be a whole number or none, not 2.5"),
        ("combine", {"rewards": "brightness"}, "rewards must be a mapping of names to numbers or a list"),
        ("combine", {"rewards": {"brightness": "x"}}, "rewards must be a mapping of names to numbers"),
        ("combine", {"rewards": ["brightness"], "weights": ["x"]}, "weights must be a list of numbers"),
        ("combine", {"rewards": [{"motion": {"enuf": 1}}]}, "'motion' has no option 'enuf'"),
        ("video", {"reward": {"mean_color": {"chanel": "red"}}}, "no option 'chanel'.*mean 'channel'"),
        ("ratings", {"ask": 3}, "ask must be a function or none"),
        ("aesthetic", {"weights": 7}, "weights must be a text or a path or none, not 7"),
        (lambda images, prompts: 0, {"speed": 1}, "'<lambda>' has no option 'speed'.*name, differentiable"),
    ],
)
def test_what_does_not_fit_is_one_sentence(reward, options, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        load_reward(reward, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", REWARDS)
def test_every_option_of_every_reward_has_an_annotation_that_can_be_checked(name):
    import inspect
    import typing

    factory = reward_class(name)
    if factory.__init__ is object.__init__:
        return
    hints = typing.get_type_hints(factory.__init__)
    for option, parameter in inspect.signature(factory).parameters.items():
        assert option in hints, option
        assert in_words(hints[option])
        if parameter.default is not parameter.empty:
            assert fits(parameter.default, hints[option]), option


def test_former_names_are_accepted_with_a_warning():
    with pytest.warns(FutureWarning, match="'mean_colour' is called 'mean_color' now"):
        assert load_reward("mean_colour", channel="blue")(BLUE, [""]).item() == pytest.approx(1)
    with pytest.warns(FutureWarning, match="Option 'colour' of reward 'target_color' is called 'color' now"):
        assert load_reward("target_color", colour="blue")(BLUE, [""]).item() == pytest.approx(0)
    with pytest.warns(FutureWarning, match="'normalise' of reward 'combine'"):
        assert not load_reward("combine", rewards=["brightness"], normalise=False).normalize
    with pytest.raises(UserError, match="option 'color' twice"), pytest.warns(FutureWarning):
        load_reward("target_color", colour="blue", color="red")


def test_every_former_name_leads_to_one_that_is_there():
    for old, new in ALIASES.items():
        reward, _, option = old.rpartition(".")
        if not reward:
            assert new in REWARDS and old not in REWARDS
        else:
            import inspect

            options = inspect.signature(reward_class(reward)).parameters
            assert new in options and option not in options


def test_a_class_of_rewards_is_built_with_the_options():
    reward = load_reward(reward_class("mean_color"), channel="blue")
    assert reward(BLUE, [""]).item() == pytest.approx(1)


def test_rewards_and_models_know_the_same_types_by_the_same_names(tmp_path):
    from rlr_core.common.weights import DTYPES, parse_dtype
    from rlr_core.diffusion.models.loading import find_dtype

    path = save(open_clip_model(), tmp_path / "clip.safetensors")
    for name, dtype in DTYPES.items():
        assert parse_dtype(name) is parse_dtype(dtype) is find_dtype(name, torch.device("cpu")) is dtype
        reward = load_reward("hpsv2", weights=os.fspath(path), dtype=name).to("cpu")
        assert next(reward.tower.network.parameters()).dtype is dtype
    for wrong in ("bf61", torch.int8, 16):
        with pytest.raises(UserError, match="Unknown dtype .*bf16"):
            parse_dtype(wrong)


@pytest.mark.parametrize(
    "returned, words",
    [
        (lambda images: None, "None"),
        (lambda images: "five", "a str"),
        (lambda images: ["a", "b"], "a list of str"),
        (lambda images: [None, 1.0], "a list of NoneType and float"),
        (lambda images: (value for value in (1.0, 2.0)), "a generator"),
        (lambda images: {"score": 1.0}, "a dict"),
        (lambda images: 3.0, "a float"),
        (lambda images: [1.0], r"shape \[1\]"),
        (lambda images: images.mean((2, 3)), r"shape \[2, 3\]"),
        (lambda images: [[1.0], [1.0, 2.0]], "a list of list"),
        (lambda images: torch.ones(2).to_sparse(), "a sparse or nested tensor"),
        (lambda images: torch.ones(2, device="meta"), "a tensor without values"),
        (lambda images: torch.ones(2, dtype=torch.complex64), "complex numbers"),
    ],
)
@pytest.mark.parametrize("differentiable", [None, True, False])
def test_a_callable_that_returns_something_odd_is_named_in_one_sentence(returned, words, differentiable):
    reward = load_reward(lambda images, prompts: returned(images), name="odd", differentiable=differentiable)
    for images in (pictures(2), pictures(2).requires_grad_(True)):
        with pytest.raises(
            UserError, match=f"'odd' returned {words}.* for 2 pictures; it must return one real"
        ):
            reward(images, ["a", "b"])


def test_a_callable_may_return_numbers_tensors_or_an_array():
    images = pictures(2)
    means = images.mean((1, 2, 3))
    for returned in (means, means.tolist(), tuple(means), list(means), means.numpy(), means.double()):
        reward = load_reward(lambda images, prompts, returned=returned: returned, differentiable=False)
        scores = reward(images, ["a", "b"])
        assert scores.dtype == torch.float32 and torch.allclose(scores, means)
    listed = load_reward(lambda images, prompts: [image.mean() for image in images])
    assert listed.differentiable
    leaf = pictures(2).requires_grad_(True)
    listed(leaf, ["a", "b"]).sum().backward()
    assert leaf.grad.abs().min() > 0


WEIGHT = torch.ones((), requires_grad=True)
NOT_FROM_THE_PIXELS = {
    "detached": lambda images, prompts: images.detach().mean((1, 2, 3)),
    "of its own weights": lambda images, prompts: WEIGHT * images.detach().mean((1, 2, 3)),
    "rounded to a list": lambda images, prompts: images.mean((1, 2, 3)).tolist(),
}


@pytest.mark.parametrize("function", NOT_FROM_THE_PIXELS.values(), ids=NOT_FROM_THE_PIXELS)
def test_a_gradient_that_does_not_come_from_the_pixels_is_noticed(function):
    assert not load_reward(function).differentiable  # found out
    declared = load_reward(function, name="cut", differentiable=True)
    with torch.no_grad():
        assert declared(pictures(2), ["a", "b"]).shape == (2,)
    for images in (pictures(2).requires_grad_(True), pictures(2).requires_grad_(True).clamp(0, 1)):
        with pytest.raises(UserError, match="'cut' is declared differentiable, but no gradient.*=False"):
            declared(images, ["a", "b"])


def test_the_gradient_is_recognized_through_checkpoints_videos_and_combinations():
    from torch.utils.checkpoint import checkpoint

    def mean(images, prompts):
        return checkpoint(lambda x: x.flatten(1).mean(1), images, use_reentrant=False)

    reward = load_reward("combine", rewards=[mean, "brightness"])
    for images in (pictures(2), videos(2)):
        leaf = images.requires_grad_(True)
        reward(leaf, ["a", "b"]).sum().backward()
        assert leaf.grad.abs().max() > 0
