"""Folders that are cut off, renamed, mixed up or hostile: they work, or one sentence says what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from damaged_folders import damage
from marks import quick
from tiny_pipelines import BUILDERS, write_pipeline

from rlr_core.common.weights import read_header
from rlr_core.diffusion.models import descriptions, folders
from rlr_core.diffusion.models.loading import load_model
from rlr_core.errors import UserError

FAMILIES = quick(["stable-diffusion", *BUILDERS], "stable-diffusion", "flux")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return write_pipeline(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return write_pipeline("stable-diffusion", tmp_path_factory.mktemp("other") / "other")


def refusal(folder):
    """What a person reads, without the folder's name; None where it works."""
    try:
        load_model(folder, device="cpu").encode_prompts(["a cat"])
    except UserError as error:
        return str(error).replace(str(folder), "<folder>")
    return None


@pytest.mark.parametrize("seed", [0, 1])
def test_a_damaged_folder_works_or_is_refused_in_a_sentence(folder, other, tmp_path, seed):
    refused = 0
    for number in range(10):
        copy = shutil.copytree(folder, tmp_path / str(number))
        what = damage(copy, other, 1000 * seed + number)
        try:
            sentence = refusal(copy)
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        if sentence is not None:
            refused += 1
            assert "\n" not in sentence and 20 < len(sentence) < 500, (what, sentence)
        shutil.rmtree(copy)
    assert refused > 3


def test_every_part_that_is_swapped_for_another_is_refused(folder, tmp_path):
    """Two parts with weights in each other's place."""
    parts = [part.name for part in sorted(folder.iterdir()) if any(part.glob("*.safetensors"))]
    for one, two in zip(parts, [*parts[1:], parts[0]], strict=True):
        if _same(folder / one, folder / two):
            continue
        copy = shutil.copytree(folder, tmp_path / one)
        for to, source in ((one, two), (two, one)):
            shutil.rmtree(copy / to)
            shutil.copytree(folder / source, copy / to)
        assert refusal(copy), f"{one} and {two} are swapped"


def _same(one, two):
    """Whether two parts have weights of the same names and shapes, such as two denoisers."""
    (first,), (second,) = one.glob("*.safetensors"), two.glob("*.safetensors")
    return read_header(first).shapes == read_header(second).shapes


def change(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def flux(tmp_path):
    return write_pipeline("flux", tmp_path / "flux")


@pytest.mark.parametrize("layers", [10**5, 10**12])
def test_layers_beyond_its_weights_are_refused_before_they_are_made(flux, layers):
    change(flux / "transformer/config.json", num_layers=layers)
    assert f"num_layers is {layers:,}" in refusal(flux)


def test_a_table_of_any_size_cannot_be_asked_for(tmp_path):
    folder = write_pipeline("stable-diffusion-3", tmp_path)
    change(folder / "transformer/config.json", pos_embed_max_size=10**6)
    assert "pos_embed_max_size is 1,000,000" in refusal(folder)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"model_max_length": 10**12}, "more than a CLIP text encoder reads"),
        ({"model_max_length": "long"}, "model_max_length is 'long'"),
        ({"model_max_length": [1]}, "The tokenizer in"),
    ],
)
def test_a_tokenizers_odd_settings_are_refused(flux, settings, says):
    change(flux / "tokenizer/tokenizer_config.json", **settings)
    assert says in refusal(flux)


def test_a_tokenizer_of_another_text_encoder_is_refused(flux):
    shutil.rmtree(flux / "tokenizer_2")
    shutil.copytree(flux / "tokenizer", flux / "tokenizer_2")
    assert "tokens, and its text encoder knows" in refusal(flux)


def test_a_scheduler_that_cannot_be_made_is_refused_when_the_folder_is_loaded(flux):
    change(flux / "scheduler/scheduler_config.json", use_karras_sigmas=True, use_beta_sigmas=True)
    with pytest.raises(UserError, match="The scheduler in .* cannot be read"):
        load_model(flux, device="cpu")


def test_running_out_of_memory_is_not_called_a_damaged_file():
    with pytest.raises(MemoryError), descriptions.reading("A file cannot be loaded"):
        raise MemoryError
    with (
        pytest.raises(UserError, match="^A file cannot be loaded: KeyError$"),
        descriptions.reading("A file cannot be loaded"),
    ):
        raise KeyError


def test_a_description_that_is_nested_without_end_is_no_model(tmp_path):
    (tmp_path / folders.INDEX).write_text("[" * 100_000)
    assert "model_index.json that cannot be read" in refusal(tmp_path)
