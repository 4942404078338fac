from pathlib import Path

from asyncrl.cli_arguments import build_parser
from asyncrl.config.load import load
from asyncrl.config.paths import with_absolute_paths
from asyncrl.config.schema import Config, RewardTerm


def test_files_are_named_by_their_whole_paths_and_other_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model/config.json", "rows.jsonl", "chat.jinja", "own.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    config = Config()
    config.model.path, config.data.train, config.data.eval = "model", "rows.jsonl", "absent.jsonl"
    config.data.chat_template = "chat.jinja"
    config.reward.terms = [RewardTerm("own.py:f", 2.0), RewardTerm("numeric"), RewardTerm("own:f")]
    config.environment.name = "own.py:Own"
    config.run.dir = "runs"
    here = with_absolute_paths(config)
    monkeypatch.chdir("/")
    assert Path(here.model.path).is_dir()
    assert Path(here.data.train).is_file()
    assert Path(here.data.chat_template).is_file()
    assert here.data.eval == "absent.jsonl"
    assert here.reward.terms == [RewardTerm(f"{tmp_path}/own.py:f", 2.0), RewardTerm("numeric"), RewardTerm("own:f")]
    assert here.environment.name == f"{tmp_path}/own.py:Own"
    assert here.run.dir == str(tmp_path / "runs")
    assert with_absolute_paths(here) == here


def test_a_value_that_begins_with_a_tilde_lies_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load(
        None, ["model.path=tiny", "data.train=~/rows.jsonl", "reward.terms=[{function: ~/own.py:f}]", "data.eval=a~/b"]
    )
    assert config.data.train == f"{tmp_path}/rows.jsonl"
    assert config.reward.terms == [RewardTerm(f"{tmp_path}/own.py:f")]
    assert config.data.eval == "a~/b"
    assert build_parser().parse_args(["launch", "--run-dir=~/run"]).run_dir == tmp_path / "run"


def test_a_folder_called_like_a_word_of_the_configuration_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "arithmetic", "environment", "auto"):
        (tmp_path / name).mkdir()
    config = Config()
    config.model.path, config.data.train, config.data.eval = "tiny", "arithmetic", "environment"
    here = with_absolute_paths(config)
    assert (here.model.path, here.data.train, here.data.eval) == ("tiny", "arithmetic", "environment")
    assert here.data.chat_template == "auto"


def test_the_file_of_a_taskset_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").touch()
    config = Config()
    for name, absolute in [
        ("verifiers:own.py", f"verifiers:{tmp_path}/own.py"),
        ("verifiers:gsm8k", "verifiers:gsm8k"),
        ("openenv:http://localhost:8000", "openenv:http://localhost:8000"),
        (f"verifiers:{tmp_path}/own.py", f"verifiers:{tmp_path}/own.py"),
    ]:
        config.environment.name = name
        assert with_absolute_paths(config).environment.name == absolute
