"""Settings as Python objects, and that one field is all that a setting takes."""

import copy
import re
from pathlib import Path

import numpy
import pytest
import yaml

from rlr_core.config import (
    LoraConfig,
    MethodConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainConfig,
    load_config,
    save_config,
)
from rlr_core.config.base import setting
from rlr_core.config.prompts import read_prompts
from rlr_core.config.reference import PAGE, help_text, page
from rlr_core.errors import UserError

ROOT = Path(__file__).parents[2]


# --- settings as Python objects ---


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SamplerConfig(guidance=float("nan")), "sampler.guidance must be a finite number, not nan"),
        (lambda: SamplerConfig(guidence=1), r"'sampler\.guidence'.*'sampler\.guidance'"),
        (lambda: LoraConfig(rank=8.0), "lora.rank must be a whole number, not 8.0"),
        (lambda: LoraConfig(rank=10**8), "lora.rank is 100000000; it must be between 1 and 4,096"),
        (lambda: SamplerConfig(width=100_000), "sampler.width is 100000"),
        (lambda: TrainConfig(batch=2**40), "batch is 1099511627776"),
        (lambda: TrainConfig(seed=10**5000), "seed is a value of type int"),
        (lambda: SamplerConfig(eta=10**400), r"sampler.eta must be a finite number, not 1000+\.\.\.\."),
        (lambda: SamplerConfig(kernel=3), "sampler.kernel is 3; it must be one of auto"),
        (lambda: SamplerConfig(kernel=["a"]), "sampler.kernel is .'a'.; it must be one of auto"),
        (lambda: TrainConfig(reward=len), "reward must be text, not <built-in"),
        (lambda: TrainConfig(lora=SamplerConfig()), "lora must hold settings of its own"),
        (lambda: TrainConfig(method=3), "method must hold settings of its own, not 3"),
        (lambda: TrainConfig(reward_options={1: 2}), "Names in reward_options must be text, not 1"),
        (lambda: TrainConfig().replace(stpes=3), "'stpes'.*'steps'"),
        (lambda: OptimizerConfig(schedule="linaer"), "'linaer'; it must be .* Did you mean 'linear'"),
    ],
)
def test_a_wrong_value_is_refused_when_the_object_is_made(make, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("steps", 0, "steps is 0"),
        ("steps", "ten", "steps must be a whole number, not 'ten'"),
        ("stpes", 3, "Unknown setting 'stpes'.*'steps'"),
        ("sampler", None, "sampler must hold settings"),
        ("out", 3, "out must be text, not 3"),
    ],
)
def test_a_wrong_value_is_refused_when_it_is_set_and_changes_nothing(name, value, sentence):
    config = TrainConfig()
    with pytest.raises(UserError, match=sentence):
        setattr(config, name, value)
    assert config == TrainConfig()


def test_a_config_can_be_changed_copied_and_compared(tmp_path):
    config = TrainConfig()
    config.out, config.method, config.sampler.eta = tmp_path, "rlr", 1
    assert (config.out, config.method) == (str(tmp_path), MethodConfig("rlr"))
    assert type(config.sampler.eta) is float
    other = config.replace(steps=7)
    assert (other.steps, config.steps) == (7, 100) and other != config and other.replace(steps=100) == config
    deep = copy.deepcopy(config)
    deep.sampler.steps = 3
    assert config.sampler.steps == 20 and TrainConfig().sampler == SamplerConfig()
    TrainConfig().reward_options["a"] = 1
    assert TrainConfig().reward_options == {}


def test_numbers_of_numpy_are_plain_in_yaml():
    config = TrainConfig(optimizer={"learning_rate": numpy.float64(0.01)})
    assert yaml.safe_load(save_config(config))["optimizer"]["learning_rate"] == 0.01


def test_prompts_that_were_read_already_come_back_from_yaml(tmp_path):
    prompts = read_prompts([["coarse", "fine"], {"prompt": "judged", "stages": ["a", "b"]}])
    path = tmp_path / "run.yaml"
    path.write_text(save_config(TrainConfig(prompts=prompts)))
    assert read_prompts(load_config(path).prompts) == prompts


def test_an_option_that_no_file_can_hold_is_named():
    with pytest.raises(UserError, match="config file cannot hold <object object"):
        save_config(TrainConfig(reward_options={"a": object()}))


# --- one field is all that a setting takes ---


def test_a_setting_is_one_field():
    """Made in a subclass here: checks, YAML, key=value, fingerprint and errors come from the field."""

    class More(LoraConfig):
        dropout: float = setting(0.0, "Share of the LoRA's inputs that is dropped.", ge=0, le=0.9)

    class Run(TrainConfig):
        lora: More = setting(More, "The adapter.")

    assert "lora.dropout" in Run.names()
    run = Run.of({"lora": {"dropout": "0.5"}})
    assert run.lora.dropout == 0.5 and run.to_dict()["lora"]["dropout"] == 0.5
    assert run.fingerprint() != Run().fingerprint()
    with pytest.raises(UserError, match="lora.dropout is 1.0; it must be between 0 and 0.9"):
        Run(lora={"dropout": 1})
    with pytest.raises(UserError, match="Did you mean 'lora.dropout'"):
        Run(lora={"dropuot": 1})


@pytest.mark.parametrize(
    "name", ["last_step_noise", "inner_epochs", "max_grad_norm", "save_every", "keep_samples"]
)
def test_outside_its_field_a_setting_is_only_read_or_set(name):
    """No other file of the engine has a default, a bound or a help text of its own for it."""
    for path in (ROOT / "rlr_core").rglob("*.py"):
        if path != ROOT / "rlr_core" / "config" / "settings.py":
            for line in path.read_text(encoding="utf-8").splitlines():
                mentions = len(re.findall(rf"\b{name}\b", line))
                assert mentions == len(re.findall(rf"\.{name}\b|\b{name}=", line)), (path, line)


def test_the_page_of_settings_is_up_to_date():
    """`python -m rlr_core.config.reference` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_help_names_every_setting_with_its_default_bounds_choices_and_methods():
    text = help_text()
    for known in TrainConfig.settings():
        assert f"  {known.key} = " in text
    assert "lora.rank = 8  (whole number, between 1 and 4,096)" in text
    assert "(adamw, adamw8bit)" in text and "rlr and zeroth_order: size" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120
