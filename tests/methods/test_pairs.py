"""Preferences from a file: written, read, refused, learned from."""

from __future__ import annotations

import pytest
import torch
from lessons import TEXTS, Workbench
from safetensors.torch import save_file

from rlr_core.errors import UserError
from rlr_core.methods.pairs import load_pairs, save_pairs


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def file(tmp_path):
    prompts = [TEXTS[0], TEXTS[1], TEXTS[1], TEXTS[2], TEXTS[0]]
    return save_pairs(tmp_path / "pairs.safetensors", pictures(5), pictures(5, seed=1), prompts)


def offline(bench, file, **options):
    bench.problem.prompts = TEXTS
    return bench.method("dpo", pairs=str(file), dpo_beta=5.0, **options)


def test_pairs_come_back_as_they_were_written(file):
    found = load_pairs(file)
    assert found.prompts == [TEXTS[0], TEXTS[1], TEXTS[1], TEXTS[2], TEXTS[0]]
    assert torch.allclose(found.preferred / 255, pictures(5), atol=0.5 / 255 + 1e-6)
    assert torch.allclose(found.rejected / 255, pictures(5, seed=1), atol=0.5 / 255 + 1e-6)


def test_what_is_no_file_of_pairs_is_refused(tmp_path, file):
    with pytest.raises(UserError, match="no file of preferences"):
        load_pairs(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="no file of preferences"):
        load_pairs(tmp_path / "text.safetensors")
    tensors = {"preferred": torch.zeros(2, 3, 8, 8), "rejected": torch.zeros(2, 3, 8, 8)}
    save_file(tensors, tmp_path / "floats.safetensors", {"prompts": '["a", "b"]'})
    with pytest.raises(UserError, match="8-bit"):
        load_pairs(tmp_path / "floats.safetensors")
    bytes_ = {name: value.to(torch.uint8) for name, value in tensors.items()}
    save_file(bytes_, tmp_path / "few.safetensors", {"prompts": '["a"]'})
    with pytest.raises(UserError, match="1 prompts for 2 pairs"):
        load_pairs(tmp_path / "few.safetensors")
    with pytest.raises(UserError, match="one size"):
        save_pairs(tmp_path / "odd.safetensors", pictures(2), pictures(3), ["a", "b"])


def test_prompt_that_is_not_trained_on_is_named(sd, file):
    bench = Workbench(sd)
    bench.problem.prompts = TEXTS[:2]
    with pytest.raises(UserError, match="a red circle"):
        bench.method("dpo", pairs=str(file))


def test_family_without_an_encoder_says_so(file):
    from tiny_flow import TinyFlow

    bench = Workbench(TinyFlow())
    with pytest.raises(UserError, match="encoder"):
        offline(bench, file).collect(bench.batch([0, 0, 0, 0]), 0)


def test_updates_deal_every_pair_once_an_epoch_and_sample_nothing(sd, file):
    bench = Workbench(sd)
    method = offline(bench, file)
    expected = {sd.encode(pair[None].float() / 255)[0].sum().item() for pair in load_pairs(file).preferred}
    found = []
    for step in range(5):  # two pairs an update: two epochs of five
        samples = method.collect(bench.batch([0, 0, 0, 0]), step)
        assert samples.rewards.tolist() == [[1, 0, 1, 0]]
        found += [samples.latents[row].sum().item() for row in (0, 2)]
    for epoch in (found[:5], found[5:]):
        assert sorted(epoch) == pytest.approx(sorted(expected), rel=1e-4)
    assert bench.chain.evaluations.forward == bench.chain.evaluations.backward == 0


@pytest.mark.slow
def test_what_is_learned_is_to_prefer_the_preferred(sd, file):
    """A step along the gradient lowers the loss of those very pairs."""
    bench = Workbench(sd)
    method = offline(bench, file, noise_levels=4)
    samples = method.collect(bench.batch([0] * 8), 0)
    (estimate,) = method.gradients(samples)
    lesson = method.lesson(samples, 0)
    prompts = [samples.batch.prompts[row] for row in range(8)]
    for row, prompt in enumerate(prompts):
        ours = lesson.conditioning.select(torch.tensor([row])).at(0.5, 1.0, False)
        theirs = bench.book.conditioning([TEXTS.index(prompt)]).at(0.5, 1.0, False)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def margin():
        gaps = []
        for share in (0.2, 0.4, 0.6, 0.8):
            level = bench.chain.noise_level(share)
            z = torch.randn(4, *lesson.latents.shape[1:], generator=torch.Generator().manual_seed(5))
            z = z.repeat_interleave(2, 0)
            x = level.alpha * lesson.latents + level.sigma * z
            with torch.no_grad():
                error = (bench.chain.predict(x, share, lesson.conditioning) - z).square().mean((1, 2, 3))
            gaps.append(((error[1::2] - error[0::2]) / level.alpha**2).mean())
        return float(torch.stack(gaps).mean())

    before = margin()
    size = torch.stack([g.norm() for g in estimate.gradient]).norm()
    with torch.no_grad():
        for parameter, direction in zip(bench.adapter.parameters(), estimate.gradient, strict=True):
            parameter.add_(direction / size * 0.05)
    assert margin() > before


def test_encoded_pictures_decode_to_themselves():
    from rlr_core.demo.scenes import draw, parse
    from rlr_core.diffusion.models.loading import load_model

    model = load_model("demo", device="cpu")
    scenes = [parse("a red circle above a blue square"), parse("a green triangle")]
    drawn = draw(scenes, torch.Generator().manual_seed(0))
    assert float((model.decode(model.encode(drawn)) - drawn).abs().mean()) < 0.03
