"""Combined rewards: sums, minima and products on a common scale, with every part logged."""

import pytest
import torch
from reference.rewards_tiny import pictures

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.running_moments import Running

NONE = ["", "", "", ""]


def named(name, function, differentiable=True):
    return load_reward(function, name=name, differentiable=differentiable)


def bright(images, prompts):
    return 100 * images.mean((1, 2, 3))


def red(images, prompts):
    return images[:, 0].mean((1, 2))


def test_a_plain_sum_minimum_and_product_are_what_they_say():
    images = pictures(4)
    a, b = bright(images, NONE), red(images, NONE)
    parts = [named("bright", bright), named("red", red)]
    combine = {
        mode: load_reward("combine", rewards=parts, weights=[2, 0.5], mode=mode, normalize=False)(
            images, NONE
        )
        for mode in ("sum", "minimum", "product")
    }
    assert torch.allclose(combine["sum"], 2 * a + 0.5 * b)
    assert torch.allclose(combine["minimum"], torch.minimum(2 * a, 0.5 * b))
    assert torch.allclose(combine["product"], a**2 * b**0.5)


def test_every_part_is_logged_by_name_and_the_same_name_twice_is_told_apart():
    reward = load_reward("combine", rewards={"brightness": 1.0, "contrast": -1.0})
    images = pictures(4)
    reward(images, NONE)
    assert set(reward.parts()) == {"brightness", "contrast"}
    assert torch.equal(reward.parts()["brightness"], load_reward("brightness")(images, NONE))
    twice = load_reward(
        "combine", rewards=[{"mean_color": {"channel": "red"}}, {"mean_color": {"channel": "blue"}}]
    )
    twice(images, NONE)
    assert set(twice.parts()) == {"mean_color", "mean_color_2"}
    outer = load_reward("combine", rewards=[reward, "saturation"])
    outer(images, NONE)
    assert {"combine/brightness", "saturation"} <= set(outer.parts())


def test_after_an_update_each_part_has_the_mean_0_and_the_deviation_1():
    images = pictures(64, 8, 8)
    prompts = [""] * 64
    reward = load_reward("combine", rewards=[named("bright", bright), named("red", red)], weights=[1, 0])
    reward(images, prompts)
    reward.after_update()
    scores = reward(images, prompts)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_inside_an_update_the_scale_stands_still_so_that_picture_by_picture_is_exact():
    images = pictures(4)
    reward = load_reward("combine", rewards=["brightness", "saturation"])
    for _ in range(2):
        together = reward(images, NONE)
        apart = torch.cat([reward(image[None], [""]) for image in images])
        assert torch.allclose(together, apart, atol=1e-6)
        reward.after_update()


def test_before_the_first_update_the_plausible_range_is_the_scale():
    images = pictures(4)
    reward = load_reward("combine", rewards=["brightness"])  # range 0 to 1
    assert torch.allclose(reward(images, NONE), (load_reward("brightness")(images, NONE) - 0.5) / 0.25)


def test_a_part_that_never_varies_does_not_blow_up():
    def constant(images, prompts):
        return 3 + 0 * images.mean((1, 2, 3))

    reward = load_reward("combine", rewards=[named("constant", constant), "brightness"])
    for _ in range(3):
        assert torch.isfinite(reward(pictures(4), NONE)).all()
        reward.after_update()


@pytest.mark.parametrize("mode", ["sum", "minimum", "product"])
def test_the_gradient_passes_through_the_combination(mode):
    images = pictures(4).requires_grad_(True)
    reward = load_reward("combine", rewards={"brightness": 1, "saturation": 1}, mode=mode)
    assert reward.differentiable
    reward(images, NONE).sum().backward()
    assert torch.isfinite(images.grad).all() and images.grad.abs().max() > 0


def test_a_negative_weight_turns_a_reward_round():
    images = pictures(4)
    up, down = (load_reward("combine", rewards={"brightness": w})(images, NONE) for w in (1, -1))
    assert torch.allclose(up, -down)


def test_a_black_box_part_makes_a_black_box_with_a_surrogate_of_the_rest():
    images = pictures(4)
    reward = load_reward("combine", rewards={"brightness": 2.0, "jpeg_compressibility": 1.0}, normalize=False)
    assert not reward.differentiable
    expected = 2 * load_reward("brightness")(images, NONE)
    expected = expected + load_reward("jpeg_compressibility").surrogate(images, NONE)
    assert torch.allclose(reward.surrogate(images, NONE), expected, atol=1e-6)
    assert reward.surrogate.differentiable
    alone = load_reward("combine", rewards=[named("box", bright, differentiable=False)])
    assert alone.surrogate is None


def test_the_surrogate_is_normalised_by_its_own_scores():
    images, prompts = pictures(32, 16, 16), [""] * 32
    reward = load_reward("combine", rewards=["jpeg_compressibility"])
    reward(images, prompts), reward.surrogate(images, prompts)
    reward.after_update()
    assert reward.surrogate(images, prompts).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert reward(images, prompts).std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_the_state_restores_the_scale_exactly():
    images = pictures(4)
    first, second = (load_reward("combine", rewards=["brightness", "jpeg_compressibility"]) for _ in range(2))
    for seed in range(3):
        first(pictures(4, seed=seed), NONE), first.surrogate(pictures(4, seed=seed), NONE)
        first.after_update()
    assert not torch.equal(first(images, NONE), second(images, NONE))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images, NONE), second(images, NONE))
    assert torch.equal(first.surrogate(images, NONE), second.surrogate(images, NONE))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="sum, minimum, product, not 'max'"):
        load_reward("combine", rewards=["brightness"], mode="max")
    with pytest.raises(UserError, match="2 rewards and 1 weights"):
        load_reward("combine", rewards=["brightness", "contrast"], weights=[1])
    with pytest.raises(UserError, match="0 rewards"):
        load_reward("combine", rewards=[])
    with pytest.raises(UserError, match="Unknown reward 'brightnes'.*brightness"):
        load_reward("combine", rewards=["brightnes"])
    with pytest.raises(UserError, match="needs positive scores and 'jpeg_compressibility' gave -"):
        load_reward("combine", rewards=["jpeg_compressibility"], mode="product", normalize=False)(
            pictures(4), NONE
        )


def test_a_combination_with_a_person_in_it_wants_whole_batches():
    ratings = load_reward("ratings", ask=lambda images, prompts: [1.0] * len(prompts), clip=False)
    assert load_reward("combine", rewards=["brightness", ratings]).whole_batch
    assert not load_reward("combine", rewards=["brightness"]).whole_batch


def test_prompts_and_videos_reach_the_parts():
    seen = []

    def listener(images, prompts):
        seen.append((tuple(images.shape), prompts))
        return images.flatten(1).mean(1)

    reward = load_reward("combine", rewards=[named("listener", listener), "brightness"])
    videos = torch.rand(2, 3, 3, 8, 8)
    assert reward(videos, ["a", "b"]).shape == (2,)
    assert seen == [((2, 3, 3, 8, 8), ["a", "b"])]


def test_a_running_mean_forgets_what_is_long_past():
    running = Running()
    for value in [0.0] * 50 + [10.0] * 50:
        running.observe(torch.tensor([value - 1, value + 1]))
        running.commit()
    assert running.mean == pytest.approx(10, abs=0.1)
    assert running.std == pytest.approx(1, abs=0.3)


def test_deviation_within_prompts_is_that_around_each_prompts_mean():
    """A part that differs between prompts alone does not hide what differs within them (GDPO)."""
    rng = torch.Generator().manual_seed(0)
    prompts = [f"prompt {number}" for number in range(50) for _ in range(4)]
    easy = torch.arange(50).repeat_interleave(4) * 10.0 + 0.1 * torch.randn(200, generator=rng)
    within, over_all = Running(within_prompts=True), Running()
    for running in (within, over_all):
        for part in torch.arange(200).split(7):  # micro-batches cut through prompts
            running.observe(easy[part], [prompts[i] for i in part.tolist()])
        running.commit()
    exact = easy.view(50, 4).double().var(1).mean() ** 0.5
    assert within.std == pytest.approx(float(exact), rel=1e-6)
    assert over_all.std > 100
    restored = Running(within_prompts=True)
    restored.restore(within.state())
    for running in (within, restored):
        running.observe(torch.tensor([0.0, 4.0]), ["a", "a"])
        running.commit()
    assert restored.std == within.std


def test_combine_can_normalize_within_prompts():
    def between(images, prompts):
        return torch.tensor([100.0 * ("b" in prompt) for prompt in prompts]) + images[:, 0, 0, 0]

    reward = load_reward("combine", rewards=[between], within_prompts=True)
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    prompts = ["a"] * 4 + ["b"] * 4
    reward(images, prompts)
    reward.after_update()
    scores = reward(images, prompts)
    inside = torch.stack([part - part.mean() for part in scores.split(4)])
    assert float(inside.square().sum() / 6) == pytest.approx(1, rel=1e-4)


def test_above_its_cap_a_part_gains_nothing_and_has_no_gradient():
    images = torch.tensor([0.2, 0.4, 0.6, 0.8])[:, None, None, None].expand(4, 3, 8, 8).clone()
    images.requires_grad_(True)
    parts = [named("bright", bright), named("red", red)]
    reward = load_reward("combine", rewards=parts, caps=[50, None], normalize=False)
    scores = reward(images, NONE)
    assert scores.tolist() == pytest.approx([20.2, 40.4, 50.6, 50.8], rel=1e-5)
    (slope,) = torch.autograd.grad(scores.sum(), images)
    assert (slope[:2, 1] > 0).all() and (slope[2:, 1] == 0).all()  # green counts for `bright` alone
    assert reward.parts()["bright"].tolist() == pytest.approx([20, 40, 60, 80], rel=1e-5)
    with pytest.raises(UserError, match="'combine' got 2 rewards and 1 caps"):
        load_reward("combine", rewards=parts, caps=[50])


def test_a_cap_holds_for_the_surrogate_too():
    images = pictures(4)
    whole = load_reward("combine", rewards=["jpeg_incompressibility"], caps=[0.001], normalize=False)
    assert torch.allclose(whole.surrogate(images, NONE), torch.full((4,), 0.001))
