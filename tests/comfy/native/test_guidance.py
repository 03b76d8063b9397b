"""Steps and guidance left open are what the model wants; a wrong choice stands, and is said in the node."""

from __future__ import annotations

import importlib

import pytest
import torch
from native_models import build
from test_from_comfy import TRAIN, around, from_comfy  # noqa: F401 - fixtures

DISTILLED = [
    "z_image_turbo_bf16",
    "flux1-schnell",
    "sdxl_lightning_4step",
    "Qwen-Image-Lightning-8steps-V1.0",
    "Hyper-SDXL-8steps",
    "flux-2-klein-4b",
    "wan2.1_t2v_lcm",
    "dmd2_sdxl_4step",
    "flux_distilled",
]
UNDISTILLED = [
    "sd_xl_base_1.0",
    "qwen_image_fp8",
    "wan2.1_t2v_1.3B",
    "flux1-dev",
    "z_image_bf16",
    "flux-2-klein-base-4b",
    "hyperrealism_v3",
    "chroma-dedistilled",
    "undistilled",
    "step12000",
    "epoch_120steps",
]


@pytest.fixture
def manner(part):
    """manner(name, chosen, files): how a tiny model is sampled where nobody says otherwise."""

    def of(name, chosen=None, files=()):
        model = build(name).model
        return part("guidance").manner(model.model, model.get_model_object("model_sampling"), chosen, files)

    return of


@pytest.fixture
def config_of(pack, around):  # noqa: F811
    """config_of(model, **inputs): the settings that RLR Train makes of its inputs."""
    module = importlib.import_module(pack["RLR_Train"].__module__)
    defaults = {each.id: getattr(each, "default", None) for each in module.train_inputs()}

    def make(model, **inputs):
        return module.config_from(defaults | around | {"model": model} | inputs)

    return make


def test_the_network_tells_how_it_is_guided(manner):
    assert manner("sdxl") == ("cfg", 20, 5.0, "")
    assert manner("flux") == ("embedded", 20, 3.5, "")
    assert manner("hunyuan-video") == ("embedded", 20, 6.0, "")
    assert manner("qwen-image")[:3] == ("cfg", 20, 5.0)


def test_flux_schnell_and_lcm_are_known_without_their_names(part):
    import comfy.model_sampling
    import comfy.supported_models
    from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

    made = build("sdxl").model
    plain = made.get_model_object("model_sampling")

    class Sampling(ModelSamplingDiscreteDistilled, LCM):
        pass

    lcm = part("guidance").manner(made.model, Sampling(made.model.model_config), None, [])
    assert lcm[:3] == ("cfg", 8, 1.0) and "LCM" in lcm.distilled
    made.model.model_config = object.__new__(comfy.supported_models.FluxSchnell)
    schnell = part("guidance").manner(made.model, plain, None, [])
    assert schnell[:3] == ("cfg", 8, 1.0) and "schnell" in schnell.distilled


@pytest.mark.parametrize("name", DISTILLED)
def test_names_of_files_are_a_hint_for_what_was_left_open(manner, name):
    found = manner("sdxl", files=["base", name])
    assert found[:3] == ("cfg", 8, 1.0) and name in found.distilled
    assert manner("sdxl", "cfg", [name]) == ("cfg", 20, 5.0, ""), "a person knows better"


@pytest.mark.parametrize("name", UNDISTILLED)
def test_other_names_are_none(manner, name):
    assert manner("sdxl", files=[name]) == ("cfg", 20, 5.0, "")


def test_distilled_models_that_are_told_a_scale_are_told_it(manner):
    assert manner("flux", files=["Hyper-FLUX.1-dev-8steps-lora"])[:3] == ("embedded", 8, 3.5)
    assert manner("sdxl", "none")[:3] == ("none", 8, 1.0)


def test_all_files_of_a_model_are_found_in_the_workflow(pack):
    module = importlib.import_module(pack["RLR_FromComfy"].__module__)
    prompt = {
        "9": {"inputs": {"model": ["7", 0], "clip": ["8", 0]}},
        "8": {"inputs": {"clip_name": "turbo_text_encoder.safetensors"}},
        "7": {"inputs": {"model": ["6", 0], "lora_name": "x/Lightning-8steps.safetensors", "strength": 1.0}},
        "6": {"inputs": {"model1": ["5", 0], "model2": ["4", 0], "ratio": 0.5}},
        "5": {"inputs": {"unet_name": "sub\\qwen_image.safetensors", "weight_dtype": "default"}},
        "4": {"inputs": {"ckpt_name": "other.gguf"}},
    }
    found = module.weights_files(prompt, "9")
    assert found == ["qwen_image", "other", "Lightning-8steps"]
    assert module.weights_files({}, "9") == []


def test_half_of_wan_22_is_refused_or_said_to_be_one(run, pack, from_comfy, monkeypatch):  # noqa: F811
    module = importlib.import_module(pack["RLR_FromComfy"].__module__)
    told, files = [], ["wan2.2_t2v_low_noise_14B_fp8_scaled"]
    monkeypatch.setattr(module, "weights_files", lambda prompt, node: files)
    monkeypatch.setattr(module.host, "say", lambda node, text: told.append(text))
    from_comfy("wan21")
    assert "last steps of Wan 2.2 14B" in told[0]
    files[:] = ["wan2.2_t2v_high_noise_14B_fp8_scaled"]
    with pytest.raises(Exception, match="low noise file"):
        from_comfy("wan21")


@pytest.mark.parametrize(
    ("name", "files", "steps", "guidance"),
    [("sdxl", [], 20, 5.0), ("sdxl", ["sdxl_turbo"], 8, 1.0), ("flux", [], 20, 3.5)],
)
def test_what_is_left_open_in_rlr_train_is_the_models(
    run,
    pack,
    from_comfy,  # noqa: F811
    config_of,
    monkeypatch,
    name,
    files,
    steps,
    guidance,
):
    module = importlib.import_module(pack["RLR_FromComfy"].__module__)
    monkeypatch.setattr(module, "weights_files", lambda prompt, node: files)
    model = from_comfy(name)
    sampler = config_of(model).sampler
    assert (sampler.steps, sampler.guidance) == (steps, guidance)
    chosen = config_of(model, sampler_steps=4, guidance=2.5).sampler
    assert (chosen.steps, chosen.guidance) == (4, 2.5)


def test_other_models_have_their_own(run, config_of):
    (demo,) = run("RLR_LoadCheckpoint", checkpoint="demo (built in)")
    (sd,) = run("RLR_LoadCheckpoint", checkpoint="diffusers: tiny")
    assert [(s.steps, s.guidance) for s in (config_of(demo).sampler, config_of(sd).sampler)] == [
        (6, 3.0),
        (20, 5.0),
    ]


def trained(run, monkeypatch, **inputs):
    """The LoRA, and the last view of a run."""
    from pathlib import Path

    from comfy_process import MODULE

    live = importlib.import_module(f"{MODULE}.nodes.live")
    told = []
    monkeypatch.setattr(live.host, "send", lambda event, data: told.append(data.get("message", "")))
    lora, *_, folder, _, _ = run("RLR_Train", **TRAIN | inputs)
    view = next(view for view in live.known_runs() if view["run"] == Path(folder).name)
    return lora, told, view


def test_a_wrong_guidance_stands_and_is_said_in_the_node(run, pack, from_comfy, around, monkeypatch):  # noqa: F811
    """A name is no knowledge: cfg 5 is done as it was asked for, as KSampler would."""
    module = importlib.import_module(pack["RLR_FromComfy"].__module__)
    plain = from_comfy("sdxl")
    monkeypatch.setattr(module, "weights_files", lambda prompt, node: ["sdxl_turbo"])
    turbo = from_comfy("sdxl")
    wrong = {"run_name": "native-turbo-5", "model": turbo, "guidance": 5.0} | around
    lora, told, view = trained(run, monkeypatch, **wrong)
    assert any("sdxl_turbo" in message and "guidance 5" in message for message in told)
    assert view["state"] == "finished" and view["message"].startswith("Finished. sdxl_turbo")
    same, told, view = trained(run, monkeypatch, **wrong | {"run_name": "native-plain-5", "model": plain})
    assert not any(told) and not view["message"]
    assert all(torch.equal(same[key], lora[key]) for key in same)


def test_a_model_said_to_be_distilled_takes_no_cfg(run, from_comfy, around, monkeypatch):  # noqa: F811
    model = from_comfy("sdxl", guidance_kind="none (distilled)")
    five = {"run_name": "native-none-5", "model": model, "guidance": 5.0} | around
    lora, told, _ = trained(run, monkeypatch, **five)
    assert any("not used" in message for message in told)
    one = five | {"run_name": "native-none-1", "guidance": 1.0}
    without, told, _ = trained(run, monkeypatch, **one)
    assert not any(told) and all(torch.equal(without[key], lora[key]) for key in without)


def test_rlr_sample_says_so_too(run, pack, from_comfy, monkeypatch):  # noqa: F811
    from comfy_process import MODULE

    host = importlib.import_module(f"{MODULE}.nodes.host")
    told = []
    monkeypatch.setattr(host, "say", lambda node, text: told.append((node, text)))
    model = from_comfy("sdxl", guidance_kind="none (distilled)")
    assert told[0][0] == "5" and "distilled" in told[0][1] and "8 steps" in told[0][1]
    (prompts,) = run("RLR_Prompts", text="a cat")
    run("RLR_Sample", model=model, prompts=prompts, steps=2)
    assert len(told) == 1
    run("RLR_Sample", model=model, prompts=prompts, steps=2, guidance=5.0)
    assert len(told) == 2 and "guidance 5 is not used" in told[1][1]
