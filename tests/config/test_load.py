from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.config.load import load, to_yaml
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError

REQUIRED = ["model.path=tiny", "data.train=arithmetic"]


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: a}\ndata: {train: b}\nlearner: {lr: 1.0e-3, batch_size: 4}\n")
    config = load(file, ["learner.batch_size=8"])
    assert (config.model.path, config.learner.lr, config.learner.batch_size) == ("a", 1e-3, 8)
    assert config.learner.beta2 == Config().learner.beta2


@settings(max_examples=25)
@given(st.floats(1e-9, 1.0), st.integers(1, 10**9), st.booleans())
def test_the_resolved_config_reads_back_equal(tmp_path_factory, lr: float, seed: int, shuffle: bool) -> None:
    config = load(None, REQUIRED)
    config.learner.lr, config.run.seed, config.data.shuffle = lr, seed, shuffle
    file = tmp_path_factory.mktemp("config") / "resolved.yaml"
    file.write_text(to_yaml(config))
    assert load(file) == config


def test_durability_off_is_a_word_although_yaml_reads_it_as_false(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("replay:\n  durability: off\n")
    assert load(file, REQUIRED).replay.durability == "off"
    config = load(None, [*REQUIRED, "replay.durability=off"])
    assert config.replay.durability == "off"
    file.write_text(to_yaml(config))
    assert load(file).replay.durability == "off"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.batchsize=3", "unknown key 'learner.batchsize'; did you mean 'learner.batch_size'"),
        ("lerner.lr=1", "unknown key 'lerner'; did you mean 'learner'"),
        ("lr=1", "unknown key 'lr'; did you mean 'learner.lr'"),
        ("generator.lr=1", "unknown key 'generator.lr'; did you mean 'learner.lr'"),
        ("zzz.bar=1", "unknown key 'zzz'; config has: model, data"),
        ("learner.zzz=1", "unknown key 'learner.zzz'; learner has: count"),
        ("reward.terms=[{wieght: 2}]", "unknown key 'reward.terms[0].wieght'; did you mean 'reward.terms[0].weight'"),
        ("learner=5", "'learner' is a section, not one value; its keys: count"),
        ("reward.terms=3", "'reward.terms' must be a list"),
        ("reward.terms=[a]", "'reward.terms[0]' is a section"),
        ("learner.batch_size=x", "key 'learner.batch_size': Value 'x' of type 'str' could not be converted to Integer"),
        ("algorithm.kl_in=[loss,reward]", "'algorithm.kl_in' takes one value, not ['loss', 'reward']"),
        ("algorithm.correction={mask: 2}", "'algorithm.correction' takes one value, not {'mask': 2}"),
        ("generator.count=null", "key 'generator.count'"),
        ("run.steps=1.5", "key 'run.steps'"),
        ("learner.lr=[1", "is not valid YAML"),
        ("learner.lr", "is not of the form key=value"),
        ("run.seed=${oc.env:ASYNCRL_NOT_SET}", "key 'run.seed'"),
    ],
)
def test_a_bad_override_is_one_message_with_the_whole_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, [*REQUIRED, override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_without_a_value_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"no value for data\.train, model\.path; .* data\.train=VALUE"):
        load(None)


@pytest.mark.parametrize(("text", "message"), [("a: [1", "not valid YAML"), ("- a\n- b\n", "must be a mapping")])
def test_a_file_that_is_no_yaml_mapping_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"config file nowhere\.yaml does not exist"):
        load("nowhere.yaml")
