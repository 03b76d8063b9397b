"""A config goes through YAML and the command line unharmed, and what cannot run is refused with a way out."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from every_setting import every_setting

from rlr_core.config import (
    MethodConfig,
    SamplerConfig,
    TrainConfig,
    config_from_dict,
    load,
    load_config,
    override,
    save_config,
    state_differences,
)
from rlr_core.config.settings import NOT_IN_STATE
from rlr_core.config.validate import check_values, refuse_python_objects
from rlr_core.errors import UserError
from rlr_core.training.check import check_config

ROOT = Path(__file__).parents[2]


# --- YAML ---


@pytest.mark.parametrize("config", [TrainConfig(), every_setting()], ids=["defaults", "all changed"])
def test_yaml_gives_back_the_same_config(tmp_path, config):
    path = tmp_path / "run.yaml"
    path.write_text(save_config(config), encoding="utf-8")
    again = load_config(path)
    assert again == config
    assert again.fingerprint() == config.fingerprint()
    assert save_config(again) == save_config(config)


def flat(data, prefix=""):
    """Names with dots of what a saved config holds."""
    names = set()
    for key, value in data.items():
        names |= (
            flat(value, f"{key}.") if isinstance(value, dict) and not prefix and value else {prefix + key}
        )
    return names


def test_every_setting_is_written_out():
    assert flat(yaml.safe_load(save_config(TrainConfig()))) == set(TrainConfig.names())
    assert len(TrainConfig.names()) == len(set(TrainConfig.names())) > 60


@pytest.mark.parametrize("known", TrainConfig.settings(), ids=lambda known: known.key)
def test_every_setting_says_what_it_means_and_has_a_default_that_it_accepts(known):
    assert known.help[0] != " " and known.help.endswith(".") and "\n" not in known.help
    assert known.nullable == (known.default is None and known.types != (Any,))
    assert bool(known.unset) == known.nullable or known.types == (Any,)
    group, _, name = known.key.rpartition(".")
    config = TrainConfig()
    setattr(getattr(config, group) if group else config, name, known.default)
    assert config == TrainConfig()


def test_methods_that_settings_name_are_methods():
    from rlr_core.methods import METHODS

    named = {method for known in TrainConfig.settings() for method in known.methods}
    assert named == set(METHODS) - {"full", "likelihood_ratio"}  # these two have no settings of their own


def test_what_python_users_pass_is_plain_in_yaml(tmp_path):
    config = TrainConfig(
        model=tmp_path / "m", out=tmp_path, prompts=("a", "b"), method="rlr", sampler={"steps": 5, "eta": 1}
    )
    assert (config.model, config.method, config.sampler) == (
        str(tmp_path / "m"),
        MethodConfig(name="rlr"),
        SamplerConfig(steps=5, eta=1.0),
    )
    path = tmp_path / "run.yaml"
    path.write_text(save_config(config))
    assert load_config(path).prompts == ["a", "b"]
    assert state_differences(config, load_config(path)) == []


def test_a_method_may_be_just_its_name(tmp_path):
    assert config_from_dict({"method": "full"}).method == MethodConfig(name="full")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a config"),
        ("- a\n- b", "is not a config"),
        ("just words", "is not a config"),
        ("a: [1", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("\x00", "is not YAML"),
        ("smapler: {steps: 3}", "Unknown setting 'smapler'.*'sampler'"),
        ("sampler: {guidence: 3}", r"Unknown setting 'sampler\.guidence'.*'sampler\.guidance'"),
        ("learning_rate: 1", r"'learning_rate'.*'optimizer\.learning_rate'"),
        ("zzz: 1", "Unknown setting 'zzz'. Known here: .*model.*evaluation.judge"),
        ("1: 2", "Unknown setting '1'"),
        ("lora:", "lora must hold settings of its own, not None"),
        ("lora: 8", "lora must hold settings"),
        ("steps: ten", "steps must be a whole number, not 'ten'"),
        ("steps: 10.5", "steps must be a whole number, not 10.5"),
        ("steps: true", "steps must be a whole number, not True"),
        ("steps:", "steps must be a whole number, not None"),
        ("sampler: {eta: much}", "sampler.eta must be a finite number, not 'much'"),
        ("sampler: {eta: .nan}", "sampler.eta must be a finite number, not nan"),
        ("sampler: {guidance: .inf}", "sampler.guidance must be a finite number, not inf"),
        ("sampler: {eta: yes}", "sampler.eta must be a finite number, not True"),
        ("lora: {alpha: x}", "lora.alpha must be a finite number or null, not 'x'"),
        ("gradient_checkpointing: 1", "gradient_checkpointing must be true or false, not 1"),
        ("model: 15", "model must be text, not 15"),
        ("reward_options: [a]", "reward_options must be settings"),
        ("sampler: {stage_boundaries: 0.5}", "must be a list or null, not 0.5"),
        ("sampler: {stage_boundaries: [a]}", "stage_boundaries must be a finite number, not 'a'"),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        load_config(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, kind):
    path = tmp_path / "run.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00\x80" * 10)
    with pytest.raises(UserError, match=r"Cannot read the config '.*run\.yaml'"):
        load_config(path)


# --- key=value ---


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("steps=7", ("steps",), 7),
        ("sampler.steps=10", ("sampler", "steps"), 10),
        ("optimizer.learning_rate=3e-4", ("optimizer", "learning_rate"), 3e-4),
        ("sampler.eta=1", ("sampler", "eta"), 1.0),
        ("gradient_checkpointing=true", ("gradient_checkpointing",), True),
        ("evaluation.judge=null", ("evaluation", "judge"), None),
        ("evaluation.judge=judge", ("evaluation", "judge"), "judge"),
        ("prompts=[a cat, a dog]", ("prompts",), ["a cat", "a dog"]),
        ("prompts=my prompts.txt", ("prompts",), "my prompts.txt"),
        ("out=2024", ("out",), "2024"),
        ("out=2024-01-01", ("out",), "2024-01-01"),
        ("out=no", ("out",), "no"),
        ("out='2024'", ("out",), "2024"),
        ("model=a=b", ("model",), "a=b"),
        ("model={broken", ("model",), "{broken"),
        ("method=rlr", ("method", "name"), "rlr"),
        ("method.name=rlr", ("method", "name"), "rlr"),
        ("method.start_range=[2, 5]", ("method", "start_range"), [2, 5]),
        (" steps =7", ("steps",), 7),
        ("reward_options.weights=x.pt", ("reward_options",), {"weights": "x.pt"}),
        ("evaluation.judge_options.scale=2", ("evaluation", "judge_options"), {"scale": 2}),
        ("sampler.negative_prompt=", ("sampler", "negative_prompt"), ""),
    ],
)
def test_any_field_can_be_set(setting, place, value):
    config = override(TrainConfig(), [setting])
    for name in place:
        config = getattr(config, name)
    assert config == value and type(config) is type(value)


def test_settings_apply_in_order_and_leave_the_rest_and_the_original():
    config = TrainConfig(method=MethodConfig(name="rlr", window=5), steps=3)
    found = override(config, ["steps=4", "method=full", "steps=5"])
    assert (found.steps, found.method) == (5, MethodConfig(name="full", window=5))
    assert config.steps == 3 and config.method.name == "rlr"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("steps", "'steps' is not a setting: write key=value"),
        ("stpes=3", "Unknown setting 'stpes'.*'steps'"),
        ("sampelr.steps=3", r"Unknown setting 'sampelr\.steps'.*'sampler\.steps'"),
        ("sampler.stesp=3", r"'sampler\.stesp'.*'sampler\.steps'"),
        ("eta=0", r"'eta'.*Did you mean 'sampler\.eta'"),
        ("rank=4", r"'rank'.*Did you mean 'lora\.rank'"),
        ("sampler.steps.more=3", "Unknown setting 'sampler.steps.more'"),
        ("=3", "Unknown setting ''"),
        ("sampler=3", "sampler must hold settings"),
        ("steps=many", "steps must be a whole number, not 'many'"),
        ("sampler.eta=1e999", "sampler.eta must be a finite number"),
        ("steps=null", "steps must be a whole number, not None"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_nearest_right_one(setting, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        override(TrainConfig(), [setting])
    assert "\n" not in str(error.value)


# --- whether a state goes on ---


def test_only_length_place_and_pieces_may_change_when_a_run_goes_on():
    ours, theirs = TrainConfig(), every_setting()
    expected = [key for key in TrainConfig.names() if key not in NOT_IN_STATE]
    assert state_differences(ours, theirs) == expected
    for key in TrainConfig.names():
        *section, name = key.split(".")
        changed = TrainConfig()
        place = getattr(changed, section[0]) if section else changed
        setattr(place, name, getattr(getattr(theirs, section[0]) if section else theirs, name))
        assert (changed.fingerprint() == ours.fingerprint()) == (key in NOT_IN_STATE), key
        assert state_differences(ours, changed) == ([] if key in NOT_IN_STATE else [key])


def test_a_fingerprint_is_the_same_in_another_process_and_from_yaml(tmp_path):
    import subprocess
    import sys

    path = tmp_path / "run.yaml"
    path.write_text(save_config(every_setting()), encoding="utf-8")
    code = f"from rlr_core.config import load_config; print(load_config({str(path)!r}).fingerprint())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == every_setting().fingerprint()


# --- checking as a whole ---


def test_the_defaults_pass():
    check_config(TrainConfig())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["method=adaptve"], "Unknown method 'adaptve'; known: .*adaptive.*Did you mean 'adaptive'"),
        (["reward=demmo"], "Unknown reward 'demmo'; known: .*demo.*Did you mean 'demo'"),
        (["evaluation.judge=jugde"], "Unknown judge 'jugde'; known: .*judge.*Did you mean 'judge'"),
        (["sampler.steps=1"], "sampler.steps is 1; it must be between 2 and 10,000"),
        (["sampler.kernel=dimd"], "sampler.kernel is 'dimd'; it must be one of auto, ddim.*'ddim'"),
        (["method=rlr", "sampler.steps=10", "method.window=10"], "method.window is 10; with 10 .* 1..9"),
        (["method=rlr", "method.window=0"], "method.window is 0; it must be between 1"),
        (["method=rlr", "method.start=range"], "method.start_range is None"),
        (["method=rlr", "method.start=range", "method.start_range=[1, 3]"], "start_range is .1, 3."),
        (["method=truncated", "method.depth=21"], "method.depth is 21"),
        (["method=likelihood_ratio", "sampler.eta=0"], "learns from the sampler's noise .* sampler.eta"),
        (["method=ddpo", "sampler.eta=0"], "learns from the sampler's noise"),
        (["method.remainder=drop"], "method.remainder is 'drop'"),
        (["method.start=first"], "method.start is 'first'"),
        (["method.advantage=grpo"], "method.advantage is 'grpo'"),
        (["method.budget=0"], "method.budget is 0"),
        (["method.budget=0.01"], "budget is 0.01; with 20 sampler steps it must be between 0.05 and 1"),
        (["method.budget=1.5"], "method.budget is 1.5; it must be between 0.001 and 1"),
        (
            ["method.perturbations=17"],
            "method.perturbations is 17; with batch 16 it must be between 1 and 16",
        ),
        (["lora.targets=mlp"], "lora.targets is 'mlp'"),
        (["lora.rank=0"], "lora.rank is 0; it must be between 1"),
        (["lora.alpha=0"], "lora.alpha is 0.0"),
        (["optimizer.name=sgd"], "optimizer.name is 'sgd'"),
        (["optimizer.schedule=step"], "optimizer.schedule is 'step'"),
        (["optimizer.learning_rate=0"], "optimizer.learning_rate is 0.0"),
        (["optimizer.beta2=1"], "optimizer.beta2 is 1.0"),
        (["steps=0"], "steps is 0; it must be between 1"),
        (["batch=10"], "batch 10 is not a multiple of samples_per_prompt 4"),
        (["batch=1", "samples_per_prompt=1"], "batch of 1 has nothing to compare"),
        (["batch=1", "samples_per_prompt=1", "method=ddpo"], "batch of 1 has no baseline"),
        (["micro_batch=0"], "micro_batch is 0"),
        (["seed=-1"], "seed is -1"),
        (["evaluation.samples=1"], "evaluation.samples is 1"),
        (["sampler.eta=-1"], "sampler.eta is -1.0; it must be between 0 and 2"),
        (["sampler.guidance=-1"], "sampler.guidance is -1"),
        (["sampler.height=-64"], "sampler.height is -64"),
        (["sampler.stage_boundaries=[0.7, 0.3]"], "stage_boundaries is .0.7, 0.3.; it must rise"),
        (["sampler.stage_boundaries=[0.5, 1.0]"], "stage_boundaries is .0.5, 1.0.; it must rise"),
    ],
)
def test_what_cannot_run_is_refused_with_the_value_and_the_way_out(settings, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        check_config(override(TrainConfig(), settings))
    assert "\n" not in str(error.value)


def test_reading_and_overriding_a_config_imports_no_torch(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from rlr_core.config import TrainConfig, override, save_config\n"
        "save_config(override(TrainConfig(), ['steps=3']))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch": 10}, "batch 10 is not a multiple"),
        ({"sampler": {"stage_boundaries": [0.7, 0.3]}}, "must rise"),
        ({"method": {"perturbations": 17}}, "perturbations is 17"),
    ],
)
def test_what_spans_settings_is_refused_without_any_table(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        check_values(config_from_dict(settings))


# --- old names ---


@pytest.mark.parametrize(("old", "new"), load.OLD_KEYS.items())
def test_an_old_key_is_accepted_with_a_warning(tmp_path, caplog, old, new):
    group, _, name = old.partition(".")
    assert new in TrainConfig.names() and old not in TrainConfig.names()
    expected = override(TrainConfig(), [f"{new}=0.25"])
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({group: {name: 0.25}}))
    for read in (lambda: load_config(path), lambda: override(TrainConfig(), [f"{old}=0.25"])):
        assert read() == expected
        assert f"Setting {old!r} is called {new!r} now." in caplog.text
        caplog.clear()


def test_an_old_key_beside_its_new_one_is_refused_and_the_given_mapping_is_not_changed():
    data = {"method": {"kl": 0.1, "kl_weight": 0.2}}
    with pytest.raises(UserError, match="'method.kl' is the old name of 'method.kl_weight'"):
        config_from_dict(data)
    del data["method"]["kl_weight"]
    assert config_from_dict(data).method.kl_weight == 0.1 and data == {"method": {"kl": 0.1}}


# --- rewards that were Python functions ---


@pytest.mark.parametrize(
    "settings", [{"reward": "python:warmth"}, {"evaluation": {"judge": "python:warmth"}}]
)
def test_a_reward_that_was_a_python_function_is_refused_where_a_config_is_run_by_itself(settings):
    config = config_from_dict(settings)
    check_config(config)  # a run in Python goes on with it
    with pytest.raises(UserError, match="'python:warmth', which a Python program handed over as an object"):
        refuse_python_objects(config)
    refuse_python_objects(TrainConfig())
