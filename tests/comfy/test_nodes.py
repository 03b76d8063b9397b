"""The nodes in a ComfyUI's own process, under inference mode as its executor runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TRAIN = {
    "steps": 2, "batch": 4, "samples_per_prompt": 2, "sampler_steps": 3, "guidance": 2.0, "rank": 2,
    "evaluate_every": 1, "evaluation_samples": 4,
}  # fmt: skip


def test_every_node_explains_itself(pack):
    assert len(pack) == 18
    for node in pack.values():
        schema = node.GET_SCHEMA()
        assert schema.category == "RLR" and schema.display_name.startswith("RLR ") and schema.description
        assert all(i.tooltip for i in schema.inputs), schema.node_id
        assert all(o.tooltip for o in schema.outputs), schema.node_id


def test_loading_the_pack_imports_no_big_library(base):
    """They are imported when a node runs: ComfyUI starts as fast as without the pack."""
    script = (
        "from comfy_process import load_pack; import pathlib, sys; p = load_pack(pathlib.Path(sys.argv[1]))"
    )
    report = "; print(p.import_seconds, *sorted(p.imported))"
    done = subprocess.run(
        [sys.executable, "-c", script + report, str(base)],
        cwd=HERE, check=True, capture_output=True, text=True,
    )  # fmt: skip
    seconds, *imported = done.stdout.splitlines()[-1].split()
    print(f"loading the pack: {float(seconds):.2f} s of processor time")
    assert "rlr_core" in imported
    big = {"accelerate", "diffusers", "matplotlib", "open_clip", "peft", "timm", "torchvision"}
    assert not big & set(imported)


def test_rare_inputs_are_advanced_where_the_version_knows_it(pack):
    import inspect

    from comfy_api.latest import io

    knows = "advanced" in inspect.signature(io.Int.Input.__init__).parameters
    inputs = {i.id: i for i in pack["RLR_Method"].GET_SCHEMA().inputs}
    assert getattr(inputs["advantage"], "advanced", None) is (True if knows else None)
    assert not getattr(inputs["kl_weight"], "advanced", None)


def test_rlr_train_shows_eight_widgets(pack):
    from comfy_api.latest import io

    shown = [i.id for i in pack["RLR_Train"].GET_SCHEMA().inputs if isinstance(i, io.WidgetInput)]
    assert shown == ["steps", "batch", "size", "sampler_steps", "guidance", "seed", "run_name", "mode"]


@pytest.mark.parametrize("node", ["train", "train_settings", "method", "sample"])
def test_inputs_that_are_settings_are_made_from_their_fields(pack, node):
    import sys

    from rlr_core.config import TrainConfig

    known = {setting.key: setting for setting in TrainConfig.settings()}
    table = sys.modules[f"custom_nodes_ComfyUI-RLR.nodes.{node}"].SETTINGS
    inputs = {i.id: i for i in pack[f"RLR_{node.title().replace('_', '')}"].GET_SCHEMA().inputs}
    otherwise = {
        ("sample", "eta"): 0.0,
        ("train", "sampler_steps"): 0,
        ("train", "guidance"): 0.0,
        ("sample", "steps"): 0,
        ("sample", "guidance"): 0.0,
    }  # what a node has its reasons for: the last four are then the model's
    if node == "train_settings":
        widgets = sys.modules["custom_nodes_ComfyUI-RLR.nodes.train_settings"].WIDGETS
        otherwise |= {(node, w.name): w.left_alone for w in widgets if w.left_alone is not None}
    for name, key in table.items():
        setting, made = known[key], inputs[name]
        assert setting.help[1:].rstrip(".") in made.tooltip
        default = otherwise.get((node, name), setting.default)
        left_open = "" if setting.types[0] is str else 0
        assert made.default == (default if default is not None else left_open)
        if made.default == "auto":
            assert made.options == ["auto", "on", "off"]
        elif setting.choices:
            assert made.options == list(setting.choices)
        elif setting.types[0] in (int, float):
            assert made.max <= (setting.high or made.max)
            least = made.min if made.min not in (-1, 0) else setting.low  # which stand for "left alone"
            assert setting.low is None or setting.low <= least


def test_inputs_left_open_and_numbers_arrive_as_settings(pack):
    import sys

    schema = sys.modules["custom_nodes_ComfyUI-RLR.nodes.schema"]
    table = {"width": "sampler.width", "alpha": "lora.alpha", "seed": "seed", "eta": "sampler.eta"}
    assert schema.settings_from({"width": 0, "alpha": 0.0, "seed": 0, "eta": 0.0}, table) == {
        "sampler": {"width": None, "eta": 0.0}, "lora": {"alpha": None}, "seed": 0,
    }  # fmt: skip


def test_training_under_inference_mode_gives_every_output(run, sockets_of, base):
    lora, model, before_after, chart, folder, losses, _ = run(
        "RLR_Train", run_name="outputs", **sockets_of, **TRAIN
    )
    assert any(name.endswith("lora_up.weight") and value.abs().sum() > 0 for name, value in lora.items())
    assert lora.metadata["rlr_steps"] == "2"
    assert model.lora == f"{folder}/lora.safetensors"
    for picture in (before_after, chart):
        assert picture.shape[0] == 1 and picture.shape[-1] == 3 and picture.std() > 0
    assert folder == str(base / "output/rlr/outputs")
    assert len(losses["loss"]) == 2


def test_nothing_of_the_model_is_held_after_training(run, sockets_of):
    import gc

    before = _parameters(gc)
    run("RLR_Train", run_name="held", **sockets_of, **TRAIN)
    assert _parameters(gc) <= before


def _parameters(gc) -> int:
    """Elements of all parameters that hold memory."""
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) is torch.nn.Parameter]
    return sum(x.numel() for x in found if x.device.type != "meta")


def test_a_finished_run_returns_at_once_and_more_steps_extend_it(run, sockets_of, monkeypatch):
    first = run("RLR_Train", run_name="again", **sockets_of, **TRAIN)

    def refuse(*arguments, **keywords):
        raise AssertionError("a finished run was loaded again")

    with monkeypatch.context() as patched:
        patched.setattr("rlr_core.diffusion.models.loading.load_model", refuse)
        second = run("RLR_Train", run_name="again", **sockets_of, **TRAIN)
    assert first[4] == second[4] and all(torch.equal(first[0][key], second[0][key]) for key in first[0])

    longer = run("RLR_Train", run_name="again", **sockets_of, **TRAIN | {"steps": 3})
    assert longer[4] == first[4] and longer[0].metadata["rlr_steps"] == "3"


def test_other_settings_and_restart_never_touch_an_earlier_run(run, sockets_of):
    first = run("RLR_Train", run_name="beside", **sockets_of, **TRAIN)[4]
    other = run("RLR_Train", run_name="beside", **sockets_of, **TRAIN | {"rank": 3})[4]
    again = run("RLR_Train", run_name="beside", mode="restart", **sockets_of, **TRAIN)[4]
    assert [first + end for end in ("", "_2", "_3")] == [first, other, again]
    assert run("RLR_Train", run_name="beside", **sockets_of, **TRAIN | {"rank": 3})[4] == other


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_cancel_keeps_state_and_lora_and_the_resumed_run_is_bit_equal(
    run, sockets_of, monkeypatch, base, share
):
    """share: of the times that a run asks whether Cancel was pressed."""
    from comfy import model_management

    check, calls, last = model_management.throw_exception_if_processing_interrupted, [], 0

    def cancel_once():
        calls.append(None)
        if len(calls) == last:
            model_management.interrupt_current_processing()
        check()

    name = f"cancelled_{share}"
    with monkeypatch.context() as patched:
        patched.setattr(model_management, "throw_exception_if_processing_interrupted", cancel_once)
        whole = run("RLR_Train", run_name=f"whole_{share}", **sockets_of, **TRAIN)[0]
        last = max(1, round(share * len(calls)))
        calls.clear()
        with pytest.raises(model_management.InterruptProcessingException):
            run("RLR_Train", run_name=name, **sockets_of, **TRAIN)
    folder = base / "output/rlr" / name
    if share:
        assert (folder / "lora.safetensors").is_file() and (folder / "state/state.safetensors").is_file()
    resumed = run("RLR_Train", run_name=name, **sockets_of, **TRAIN)[0]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_out_of_memory_saves_the_state_and_says_what_to_lower(run, sockets_of, monkeypatch, base):
    from rlr_core.diffusion.chain import Chain
    from rlr_core.errors import UserError

    mean, calls = Chain.mean, []

    def full(self, *arguments):
        calls.append(None)
        if len(calls) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return mean(self, *arguments)

    monkeypatch.setattr(Chain, "mean", full)
    with pytest.raises(UserError, match=r"micro_batch to 2 .*gradient_checkpointing on"):
        run("RLR_Train", run_name="oom", **sockets_of, **TRAIN, gradient_checkpointing="off")
    assert (base / "output/rlr/oom/state/state.safetensors").is_file()
    monkeypatch.undo()
    assert run("RLR_Train", run_name="oom", **sockets_of, **TRAIN | {"micro_batch": 2})[4].endswith("oom")


BAD_NAMES = [
    "../evil", "a/../../evil", "/etc/passwd", "..", ".", "", "a\\..\\..\\b", "C:/x", "~/x", "con", "a/.ssh/x",
    "nul.txt", "a\x00b", "x" * 300, "a/b/c/d/e/f", "<b>",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_outside_are_refused(run, sockets_of, name, base):
    from rlr_core.errors import UserError

    before = sorted(base.rglob("*"))
    with pytest.raises(UserError):
        run("RLR_Train", run_name=name, **sockets_of, **TRAIN)
    with pytest.raises(UserError):
        run("RLR_SaveLoRA", lora={"a": torch.zeros(1)}, name=name)
    with pytest.raises(UserError):
        run("RLR_TrainingReport", run_folder=name)
    with pytest.raises(UserError):
        run("RLR_LoadCheckpoint", checkpoint=name)
    with pytest.raises(UserError):
        run("RLR_Prompts", file=name)
    with pytest.raises(UserError):
        run("RLR_Reward", reward="aesthetic", weights=name)
    assert sorted(base.rglob("*")) == before


def test_a_link_out_of_the_runs_folder_is_not_followed(run, sockets_of, base, tmp_path):
    from rlr_core.errors import UserError

    (base / "output/rlr").mkdir(exist_ok=True)
    (base / "output/rlr/link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="cannot be used as a name"):
        run("RLR_Train", run_name="link/x", **sockets_of, **TRAIN)


@pytest.mark.parametrize(
    "changed", [{"steps": 10**9}, {"batch": 4096}, {"width": 10**6}, {"guidance": float("nan")}, {"rank": 0},
                {"steps": "many"}, {"mode": "delete"}],
)  # fmt: skip
def test_sizes_are_bounded_also_where_an_input_is_linked(run, sockets_of, changed):
    from rlr_core.errors import UserError

    with pytest.raises(UserError, match=next(iter(changed))):
        run("RLR_Train", run_name="bounds", **sockets_of, **TRAIN | changed)


def test_sampling_wears_the_trained_lora(run, sockets_of):
    trained = run("RLR_Train", run_name="sampled", **sockets_of, **TRAIN | {"learning_rate": 0.1})[1]
    same = {"prompts": sockets_of["prompts"], "steps": 3, "seed": 4}
    (without,) = run("RLR_Sample", model=sockets_of["model"], **same)
    (with_lora,) = run("RLR_Sample", model=trained, **same)
    assert without.shape == (2, 16, 16, 3) and not torch.equal(without, with_lora)
    assert torch.equal(without, run("RLR_Sample", model=sockets_of["model"], **same)[0])


def test_scoring_sorts_a_batch(run):
    grey = torch.tensor([0.2, 0.9, 0.5])[:, None, None, None].expand(3, 32, 32, 3).contiguous()
    (reward,) = run("RLR_Reward", reward="brightness")
    scores, ordered, best, report = run("RLR_ScoreImages", images=grey, reward=reward)
    assert scores == pytest.approx([0.2, 0.9, 0.5], abs=1e-4)
    assert torch.equal(ordered, grey[[1, 2, 0]]) and torch.equal(best, grey[1:2])
    assert report.splitlines()[1].startswith("1. picture 2")


def test_combined_rewards_are_any_number(run):
    def reward(name):
        return run("RLR_Reward", reward=name)[0]

    plain = {"mode": "sum", "normalize": False}
    parts = {"reward_1": reward("brightness"), "weight_1": 2.0, "reward_2": reward("contrast")}
    (first,) = run("RLR_CombineRewards", **plain, **parts)
    more = {"reward_1": first, "weight_1": 0.5, "reward_2": reward("saturation"), "weight_2": -1.0}
    (both,) = run("RLR_CombineRewards", **plain, **more)
    assert both.options["weights"] == [1.0, 0.5, -1.0]
    white = torch.ones(1, 32, 32, 3)
    (score,), *_ = run("RLR_ScoreImages", images=white, reward=both)
    assert score == pytest.approx(1.0, abs=1e-3)


def test_a_target_picture_is_kept_as_a_file_in_the_runs_folder(run, base):
    picture = torch.rand(1, 24, 24, 3)
    (reward,) = run("RLR_Reward", reward="target_picture", target=picture)
    assert reward.options["target"].startswith(str(base / "output/rlr/targets"))
    (score,), *_ = run("RLR_ScoreImages", images=picture, reward=reward)
    assert score == pytest.approx(0.0, abs=1e-4)


def test_a_missing_weight_file_is_one_sentence_with_its_place(run, base):
    from rlr_core.errors import UserError

    (reward,) = run("RLR_Reward", reward="aesthetic")
    with pytest.raises(UserError, match=r"Get it from https://.* and put it at .*models/reward_models"):
        run("RLR_ScoreImages", images=torch.rand(1, 32, 32, 3), reward=reward)


def test_stages_belong_together_line_by_line(run):
    from rlr_core.errors import UserError

    (prompts,) = run("RLR_PromptStages", coarse="a\nb", middle="", fine="c\nd", first_boundary=0.4)
    assert prompts.training == [["a", "c"], ["b", "d"]] and prompts.boundaries == [0.4]
    with pytest.raises(UserError, match="same number of lines"):
        run("RLR_PromptStages", coarse="a", middle="", fine="c\nd")


def test_staged_prompts_train(run, sockets_of):
    (prompts,) = run("RLR_PromptStages", coarse="a cat", middle="a red cat", fine="a photo of a red cat")
    folder = run("RLR_Train", run_name="stages", **sockets_of | {"prompts": prompts}, **TRAIN)[4]
    from rlr_core.config import load_config

    assert load_config(f"{folder}/config.yaml").sampler.stage_boundaries == [0.33, 0.66]


def test_prompts_come_from_a_file_and_a_part_is_held_out(run, base):
    (base / "input/list.txt").write_text("one\n\ntwo\nthree\nfour\n")
    (prompts,) = run("RLR_Prompts", file="list.txt", held_out=0.5)
    assert len(prompts.training) == len(prompts.held_out) == 2
    assert set(prompts.training) | set(prompts.held_out) == {"one", "two", "three", "four"}


def test_prompts_for_readable_text_come_along(run):
    (prompts,) = run("RLR_Prompts", file="readable text (built in)")
    assert len(prompts.training) == 40 and len(prompts.held_out) == 16
    assert all('"' in prompt for prompt in prompts.training) and not prompts.untouched


def test_a_method_keeps_only_its_own_settings(run):
    from rlr_core.config import MethodConfig

    (method,) = run("RLR_Method", method="truncated", depth_K=3, budget=0.1, kl_weight=0.02)
    assert method == MethodConfig("truncated", depth=3, kl_weight=0.02)


def test_the_report_reads_a_run_and_a_cancelled_one(run, sockets_of):
    folder = run("RLR_Train", run_name="reported", **sockets_of, **TRAIN)[4]
    for name in (folder, "reported"):
        chart, summary = run("RLR_TrainingReport", run_folder=name)
        assert chart.std() > 0 and "2 of 2 updates, finished" in summary


def test_a_saved_lora_is_found_by_stock_loaders_and_never_overwritten(run, base):
    import folder_paths

    lora = {"a.lora_up.weight": torch.ones(2, 2)}
    (path,) = run("RLR_SaveLoRA", lora=lora, name="mine")
    assert path == str(base / "output/loras/mine.safetensors")
    assert run("RLR_SaveLoRA", lora=lora, name="mine") == [path]
    (second,) = run("RLR_SaveLoRA", lora={"a.lora_up.weight": torch.zeros(2, 2)}, name="mine")
    assert second.endswith("mine_2.safetensors")
    folder_paths.add_model_folder_path("loras", str(base / "output/loras"))  # as main.py does
    assert "mine.safetensors" in folder_paths.get_filename_list("loras")


def test_a_lora_that_was_trained_for_some_steps_says_so_when_it_is_saved(pack):
    import sys

    node = sys.modules["custom_nodes_ComfyUI-RLR.nodes.lora"].SaveLora
    lora = LoraWithMetadata({"a.lora_up.weight": torch.ones(2, 2)})
    assert len(node.run(lora, "everywhere", "keep both").ui["text"]) == 1
    lora.metadata = {"end_percent": "0.5"}
    _, said = node.run(lora, "early", "keep both").ui["text"]
    assert "first 50 % of the steps" in said


class LoraWithMetadata(dict):
    metadata: dict = {}


def test_the_live_view_is_kept_for_pages_that_are_loaded_again(run, sockets_of, pack):
    import sys

    live = sys.modules["custom_nodes_ComfyUI-RLR.nodes.live"]
    run("RLR_Train", run_name="viewed", **sockets_of, **TRAIN)
    view = live.known_runs()[-1]
    assert view["node"] == "5" and view["state"] == "finished" and view["run"] == "viewed"
    assert [point["step"] for point in view["points"]] == [0, 1, 2]
    assert {"reward", "held_out", "judge", "distance"} <= set(view["points"][-1])
    assert view["points"][0]["distance"] == 0 and view["steps"] == view["step"] == 2
    assert [sample["step"] for sample in view["samples"]] == [0, 1, 2]
    assert all(len(sample["image"]) < 40_000 for sample in view["samples"])
