"""Weight files: what is missing or wrong is said in one sentence, and no file runs code."""

import json
import os
import pickle

import pytest
import torch
from marks import opens_pickles
from reference.rewards_tiny import aesthetic_head, hugging_face_clip, open_clip_model, save

from rlr_core.errors import UserError
from rlr_core.rewards import load_reward
from rlr_core.rewards.aesthetic import HEAD
from rlr_core.rewards.files import locate, read_tensors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLR_REWARD_MODELS", str(tmp_path))
    return tmp_path


class Dangerous:
    """Unpickling this runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@opens_pickles
@pytest.mark.parametrize("how", ["torch", "torch legacy", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused(folder, how):
    marker, path = folder / "it_ran", folder / "sac+logos+ava1-l14-linearMSE.pth"
    content = {**aesthetic_head(), "extra": Dangerous(marker)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(UserError, match="refused: it holds more than tensors") as error:
        load_reward("aesthetic")
    assert str(path) in str(error.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Dangerous(marker)))
    assert marker.exists()


def test_a_missing_file_is_named_with_where_to_get_it_and_where_it_goes(folder):
    with pytest.raises(UserError) as error:
        load_reward("hpsv2")
    for part in ("HPS_v2.1_compressed", "ViT-H/14", "huggingface.co/xswu/HPSv2", str(folder), "weights="):
        assert part in str(error.value)


def test_a_given_path_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match="/nowhere/clip.safetensors is not there"):
        load_reward("clip_score", weights="/nowhere/clip.safetensors")


def test_folders_are_searched_in_order_and_a_path_goes_first(tmp_path, monkeypatch):
    first, second = tmp_path / "a", tmp_path / "b"
    monkeypatch.setenv("RLR_REWARD_MODELS", f"{first}{os.pathsep}{second}")
    name = HEAD.names[0]
    for folder in (second, first):
        folder.mkdir()
        torch.save(aesthetic_head(), folder / name)
        assert locate(HEAD) == folder / name
    own = save(aesthetic_head(), tmp_path / "own.safetensors")
    assert locate(HEAD, own) == own
    assert locate(HEAD, name) == first / name


def test_the_safetensors_twin_of_a_pickle_goes_first(folder):
    torch.save(aesthetic_head(), folder / HEAD.names[0])
    twin = save(aesthetic_head(), folder / "sac+logos+ava1-l14-linearMSE.safetensors")
    assert locate(HEAD) == twin


def test_without_the_variable_the_folder_is_models_reward_models(tmp_path, monkeypatch):
    monkeypatch.delenv("RLR_REWARD_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models" / "reward_models" / HEAD.names[0]
    path.parent.mkdir(parents=True)
    torch.save(aesthetic_head(), path)
    assert locate(HEAD).samefile(path)


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pt", marks=opens_pickles)])
def test_a_truncated_file_is_called_truncated(folder, suffix):
    path = folder / f"clip{suffix}"
    if suffix == ".pt":
        torch.save(open_clip_model().state_dict(), path)
    else:
        save(open_clip_model(), path)
    whole = path.read_bytes()
    for length in (len(whole) - 1000, len(whole) // 2, 5, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"clip\.\w+ is truncated") as error:
            load_reward("clip_score", weights=path)
        assert "huggingface.co" in str(error.value)


@opens_pickles
def test_a_torchscript_program_is_refused_by_its_name(folder):
    path = folder / "ViT-L-14.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(UserError, match="TorchScript program"):
        load_reward("clip_score", weights=path)


def test_text_is_not_a_weight_file(folder):
    path = folder / "weights.txt"
    path.write_text("hello")
    with pytest.raises(UserError, match=r"neither a \.safetensors nor a \.pt"):
        load_reward("clip_score", weights=path)


def test_another_architecture_is_refused_with_the_name_of_a_tensor(folder):
    clip = open_clip_model().state_dict()
    path = folder / "clip.safetensors"

    save({k: v for k, v in clip.items() if k != "visual.ln_pre.bias"}, path)
    with pytest.raises(UserError, match=r"it lacks 'ln_pre\.bias'"):
        load_reward("clip_score", weights=path)

    save({**clip, "visual.ln_pre.bias": torch.zeros(7)}, path)
    with pytest.raises(UserError, match=r"has another shape for 'ln_pre\.bias'"):
        load_reward("clip_score", weights=path)

    save({**clip, "visual.register": torch.zeros(7)}, path)
    with pytest.raises(UserError, match="has unexpected 'register'"):
        load_reward("clip_score", weights=path)

    save(aesthetic_head(), path)
    with pytest.raises(UserError, match=r"is not a CLIP with both towers.*lacks 'visual\.conv1\.weight'"):
        load_reward("clip_score", weights=path)

    save(clip, path)
    with pytest.raises(UserError, match="is not the aesthetic v2 head"):
        load_reward("aesthetic", weights=path, clip=path)


def test_a_head_for_another_clip_is_refused_with_both_widths(folder):
    head = save(aesthetic_head(768), folder / "head.safetensors")
    clip = save(open_clip_model(), folder / "clip.safetensors")
    with pytest.raises(UserError, match="gives 48 features and head.safetensors takes 768"):
        load_reward("aesthetic", weights=head, clip=clip)


def test_an_image_tower_alone_is_not_enough_for_prompts(folder):
    vision = {k: v for k, v in hugging_face_clip().state_dict().items() if "vis" in k}
    path = save(vision, folder / "clip_vision.safetensors")
    with pytest.raises(UserError, match="has an image tower only"):
        load_reward("clip_score", weights=path)


@opens_pickles
def test_nested_and_prefixed_state_dicts_are_unwrapped(folder):
    tensors = aesthetic_head()
    path = folder / "head.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path)
    read = read_tensors(path, HEAD)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_shards_are_read_together_and_only_from_beside_their_index(folder):
    tensors = aesthetic_head()
    names = list(tensors)
    save({n: tensors[n] for n in names[:4]}, folder / "x" / "model-00001.safetensors")
    save({n: tensors[n] for n in names[4:]}, folder / "model-00002.safetensors")
    index = folder / "x" / "model.safetensors.index.json"
    files = {n: "model-00001.safetensors" if n in names[:4] else "../model-00002.safetensors" for n in names}
    index.write_text(json.dumps({"weight_map": files}))
    with pytest.raises(UserError, match="model-00002.safetensors is missing; model.safetensors.index.json"):
        read_tensors(locate(HEAD, folder / "x"), HEAD)
    (folder / "model-00002.safetensors").rename(folder / "x" / "model-00002.safetensors")
    assert read_tensors(locate(HEAD, folder / "x"), HEAD).keys() == tensors.keys()


def test_old_torch_may_not_read_pickles(folder, monkeypatch):
    """Before 2.6, weights_only itself could be made to run code (CVE-2025-32434)."""
    path = folder / "head.pth"
    torch.save(aesthetic_head(), path)
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(UserError, match="update torch to 2.6"):
        read_tensors(path, HEAD)
