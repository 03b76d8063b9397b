"""An evaluation measures what it says, the same way every time."""

import math

import pytest
import torch

from rlr_core.diffusion.chain import Chain
from rlr_core.diffusion.conditioning import Conditioning
from rlr_core.diffusion.kernels import Step
from rlr_core.diffusion.models.base import DiffusionModel
from rlr_core.diffusion.rollout import Noise, rollout
from rlr_core.errors import UserError
from rlr_core.evaluation.measures import ConfidenceInterval, Evaluation, difference, diversity, evaluate, plan
from rlr_core.rewards.base import CallableReward

SHAPE = (3, 8, 8)
PROMPTS = ["dark", "bright", "dark", "middling", "bright"]
SEEDS = [3, 1, 4, 1, 5]
SHIFT = {"dark": -1.0, "middling": 0.0, "bright": 1.0}


class Painter:
    """A model whose pictures follow their prompt's brightness and their noise; row 0 is the empty prompt."""

    guidance_kind = "cfg"
    guide = DiffusionModel.guide
    table = {"shift": torch.tensor([0.0, *(SHIFT[prompt] for prompt in PROMPTS)])}

    def denoise(self, latents, timestep, conditioning):
        return conditioning["shift"][:, None, None, None] - latents

    def decode(self, latents):
        return 0.5 + 0.7 * latents


@pytest.fixture
def chain():
    return Chain(
        Painter(), [Step(float(t), 1.0, 0.5, 0.1 if t > 1 else 0.0) for t in (3, 2, 1)], guidance=2.0
    )


def conditioning_of(index):
    return Conditioning(Painter.table, torch.tensor(index)[:, None] + 1)


brightness = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), "brightness", True)
fits = CallableReward(
    lambda images, prompts: torch.tensor([float(p == "bright") for p in prompts]), "fits", False
)


def measure(chain, **options):
    return evaluate(
        chain, {"reward": brightness, "judge": fits}, PROMPTS, SEEDS, conditioning_of, SHAPE, **options
    )


def test_picture_i_follows_prompt_i_and_seed_i(chain):
    found = measure(chain, batch=2, keep=5)
    for i, seed in enumerate(SEEDS):
        latents = rollout(chain, Noise([seed], SHAPE), conditioning_of([i])).final
        expected = chain.model.decode(latents)[0].clamp(0, 1)
        torch.testing.assert_close(found.images[i], expected)
        assert found.scores["reward"][i].item() == pytest.approx(expected.mean().item(), abs=1e-6)
    assert found.scores["judge"].tolist() == [0, 1, 0, 0, 1]
    assert found.images.amin() >= 0 and found.images.amax() <= 1
    assert found.images.eq(1).any()  # the decoder overshoots, the rewards never see it


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_the_batch_size_changes_nothing(chain, batch):
    one, other = measure(chain, batch=3), measure(chain, batch=batch)
    torch.testing.assert_close(one.scores, other.scores)
    assert one.diversity == pytest.approx(other.diversity)


def test_no_graph_is_built_and_evaluations_are_counted(chain):
    found = measure(chain, batch=2)
    assert not found.scores["reward"].requires_grad
    assert (chain.evaluations.forward, chain.evaluations.backward) == (5 * 3 * 2, 0)


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (3, 3), (99, 5)])
def test_it_keeps_the_first_pictures(chain, keep, kept):
    assert torch.equal(
        measure(chain, batch=2, keep=keep).images, measure(chain, batch=2, keep=5).images[:kept]
    )


def test_it_tells_how_far_it_is(chain):
    seen = []
    measure(chain, batch=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_reward_that_fails_is_named_even_in_the_last_batch(chain):
    broken = CallableReward(
        lambda images, prompts: torch.tensor([math.nan if len(images) == 1 else 0.0] * len(images)),
        "broken",
        False,
    )
    with pytest.raises(UserError, match="'broken' gave nan"):
        evaluate(chain, {"judge": broken}, PROMPTS, SEEDS, conditioning_of, SHAPE, batch=2)


@pytest.mark.parametrize(("prompts", "seeds"), [([], []), (["dark"], [1, 2])])
def test_prompts_and_seeds_must_match(chain, prompts, seeds):
    with pytest.raises(ValueError, match="seed for every prompt"):
        evaluate(chain, {"judge": fits}, prompts, seeds, conditioning_of, SHAPE)


def test_an_evaluation_survives_being_saved(chain):
    found = measure(chain, keep=2)
    again = Evaluation.from_state(*found.to_state())
    torch.testing.assert_close(again.scores, found.scores, rtol=0, atol=0)
    assert torch.equal(again.images, found.images)
    assert (again.prompts, again.seeds, again.diversity) == (found.prompts, found.seeds, found.diversity)


# --- statistics ---


def test_intervals_hold_the_truth_19_times_in_20():
    rng = torch.Generator().manual_seed(0)
    draws = torch.rand(4000, 60, generator=rng) ** 2
    found = [ConfidenceInterval.of(row) for row in draws]
    held = sum(estimate.low <= 1 / 3 <= estimate.high for estimate in found) / len(found)
    assert 0.93 < held < 0.96


def test_an_estimate_is_the_mean_and_its_interval():
    estimate = ConfidenceInterval.of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 1.96 * math.sqrt(5 / 3) / 2
    assert estimate.mean == 2.5
    assert (estimate.low, estimate.high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))
    assert str(estimate) == f"2.500 [{2.5 - half:.3f}, {2.5 + half:.3f}]"


def test_one_value_has_no_interval():
    assert ConfidenceInterval.of(torch.tensor([0.25])) == (0.25, None, None)
    assert str(ConfidenceInterval.of(torch.tensor([0.25]))) == "0.250"


def evaluation_with(scores, prompts=("a", "b", "c", "d"), seeds=(1, 2, 3, 4)):
    return Evaluation(
        list(prompts), list(seeds), {"judge": torch.tensor(scores)}, None, torch.zeros(0, 3, 8, 8)
    )


def test_pairs_take_out_what_the_prompts_differ_in():
    before, after = evaluation_with([0.0, 10.0, 20.0, 30.0]), evaluation_with([1.0, 11.1, 21.0, 30.9])
    paired = difference(before, after, "judge")
    assert paired.mean == pytest.approx(1.0)
    assert paired.low > 0.9
    assert before.estimate("judge").high > after.estimate("judge").low  # apart they say nothing
    assert difference(after, before, "judge").mean == pytest.approx(-1.0)


@pytest.mark.parametrize("change", [{"prompts": "abcx"}, {"seeds": (1, 2, 3, 5)}])
def test_only_the_same_prompts_and_seeds_have_a_difference(change):
    with pytest.raises(ValueError, match="same prompts and seeds"):
        difference(evaluation_with([0.0] * 4), evaluation_with([0.0] * 4, **change), "judge")


# --- diversity ---


def test_diversity_is_the_distance_between_pictures_of_a_prompt():
    images = torch.tensor([0.0, 0.5, 0.0, 0.0, 1.0, 1.0])[:, None, None, None].expand(6, 3, 4, 4)
    # a: one pair, 0.5 apart; b: three pairs, 0, 1 and 1 apart; c: alone, does not count
    assert diversity(images, ["a", "a", "b", "b", "b", "c"]) == pytest.approx((0.5 + 2 / 3) / 2)


def test_pictures_that_are_all_alike_have_no_diversity_and_single_ones_none_at_all():
    assert diversity(torch.rand(1, 3, 4, 4).expand(3, 3, 4, 4), ["a"] * 3) == 0
    assert diversity(torch.rand(3, 3, 4, 4), ["a", "b", "c"]) is None


def test_diversity_sees_layout_and_not_texture(chain):
    rng = torch.Generator().manual_seed(0)

    class Images(Painter):
        def decode(self, latents):
            return self.images[: len(latents)]

    chain.model = Images()
    noise = torch.randint(0, 2, (2, 3, 256, 256), generator=rng).float()
    halves = torch.zeros(2, 3, 256, 256)
    halves[0, ..., :128], halves[1, ..., 128:] = 1, 1
    found = []
    for images in (noise, halves):
        chain.model.images = images
        found.append(
            evaluate(chain, {}, ["dark"] * 2, [1, 2], lambda index: conditioning_of([0] * len(index)), SHAPE)
        )
    assert found[0].diversity < 0.1
    assert found[1].diversity == pytest.approx(1.0)


def test_videos_are_evaluated_too(chain):
    class Films(Painter):
        def decode(self, latents):
            return torch.stack([0.5 + 0.1 * latents] * 4, 1)

    chain.model = Films()
    first = CallableReward(lambda videos, prompts: videos[:, 0].mean((1, 2, 3)), "first frame", True)
    found = evaluate(chain, {"reward": first}, PROMPTS, SEEDS, conditioning_of, SHAPE, keep=2)
    assert found.images.shape == (2, 4, 3, 8, 8)
    assert found.diversity > 0


# --- which prompts and seeds ---


def test_a_plan_gives_every_prompt_two_pictures_of_different_seeds():
    index, seeds = plan(240, 32, seed=0)
    assert len(index) == len(seeds) == len(set(seeds)) == 32
    assert all(index.count(i) == 2 for i in index)
    assert len(set(index[:16])) == 16
    assert max(index) > 200 and min(index) == 0  # from the whole list
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("prompts", "samples"), [(1, 5), (3, 32), (7, 2), (10, 1), (5, 11)])
def test_a_plan_fits_any_numbers(prompts, samples):
    index, seeds = plan(prompts, samples, seed=1)
    assert len(index) == samples and set(index) <= set(range(prompts))
    counts = [index.count(i) for i in set(index)]
    assert max(counts) - min(counts) <= 1
    assert samples < 4 or min(counts) >= 2


def test_a_plan_depends_on_the_seed_alone():
    assert plan(9, 8, 5) == plan(9, 8, 5)
    assert not set(plan(9, 8, 5)[1]) & set(plan(9, 8, 6)[1])
