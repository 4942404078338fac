import json
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrl.commands.inputs import eval_file, make_inputs, save_inputs, train_file
from asyncrl.config.data import MixtureSet
from asyncrl.config.load import load
from asyncrl.config.model_shape import read_model_shape
from asyncrl.config.schema import Config, RewardTerm
from asyncrl.data.prompt_order import prompt_order
from asyncrl.data.prompts import load_prompts
from asyncrl.errors import ConfigError, DataError
from tests.support.models import random_qwen3


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Ten training rows of which one is too long, three held-out rows, a tiny model that was not warmed up."""
    data = tmp_path / "data"
    data.mkdir()
    prompts = [f"{number}+1=" for number in range(9)] + ["1+" * 40 + "1="]
    for name, chosen in (("train", prompts), ("test", prompts[:3])):
        lines = [json.dumps({"prompt": prompt, "answer": "1"}) for prompt in chosen]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config = Config()
    config.model.path, config.model.warmup_steps = "tiny", 0
    config.data.train, config.data.eval = str(data / "train.jsonl"), str(data / "test.jsonl")
    config.data.max_prompt_tokens = 8
    config.learner.batch_size = 4
    config.run.dir = str(tmp_path / "runs")
    return config


def test_inputs_say_what_was_read_and_dropped_and_how_many_steps_it_makes(config):
    config.run.epochs = 3
    inputs = make_inputs(config)
    assert [prompt.text for prompt in inputs.train] == [f"{number}+1=" for number in range(9)]
    assert inputs.num_steps == 3 * 9 // 4
    assert inputs.notes == [
        "training prompts: 9 of 10 rows; 1 dropped as longer than data.max_prompt_tokens=8",
        "held-out prompts: 3 of 3 rows",
    ]
    assert (Path(inputs.model_path) / "config.json").is_file()


LAUNCHER = """
import sys
from asyncrl.commands.launch import make_inputs
from asyncrl.config.load import load

print(make_inputs(load(None, sys.argv[1:])).shape)
print("torch" in sys.modules)
"""


def test_a_launcher_that_finds_the_tiny_model_made_does_not_import_torch(tmp_path):
    overrides = ["model.path=tiny", "model.warmup_steps=0", "data.train=arithmetic", f"run.dir={tmp_path}"]
    inputs = make_inputs(load(None, overrides))
    result = subprocess.run([sys.executable, "-c", LAUNCHER, *overrides], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [str(read_model_shape(inputs.model_path)), "False"]


def test_saved_inputs_are_read_back_by_the_replay_role(config, tmp_path):
    inputs = make_inputs(config)
    save_inputs(inputs, tmp_path)
    assert load_prompts(train_file(tmp_path)) == inputs.train
    assert load_prompts(eval_file(tmp_path)) == inputs.eval


def test_without_held_out_data_there_is_no_file_of_it(config, tmp_path):
    config.data.eval = None
    save_inputs(make_inputs(config), tmp_path)
    assert not eval_file(tmp_path).exists()


def test_the_columns_that_a_reward_asks_for_travel_with_the_prompts(config, tmp_path):
    (tmp_path / "own.py").write_text("def score(completion, level):\n    return level\n")
    config.reward.terms = [RewardTerm(f"{tmp_path}/own.py:score")]
    lines = [json.dumps({"prompt": f"{n}+1=", "answer": "1", "level": n}) for n in range(9)]
    Path(config.data.train).write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"data\.eval: .*test\.jsonl:1: no column 'level'"):
        make_inputs(config)
    config.data.eval = None
    save_inputs(make_inputs(config), tmp_path)
    columns = [json.loads(prompt.columns) for prompt in load_prompts(train_file(tmp_path))]
    assert columns == [{"level": n} for n in range(9)]


def test_steps_count_before_epochs(config):
    config.run.steps = 7
    assert make_inputs(config).num_steps == 7


def test_fewer_prompts_than_one_step_needs_are_refused_with_the_numbers(config):
    config.learner.batch_size = 10
    with pytest.raises(ConfigError, match=r"run.epochs=1 of 9 prompts .* learner.batch_size=10"):
        make_inputs(config)


def test_a_model_that_is_not_there_is_named_before_the_data_is_read(config):
    config.model.path, config.data.train = "/no/such/folder", "/no/such/data"
    with pytest.raises(DataError, match=r"model.path=/no/such/folder: no such folder; give model.path as"):
        make_inputs(config)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "the folder has no config.json"),
        ("model.safetensors", "the folder has no weights"),
        ("tokenizer.json", "it has no tokenizer"),
    ],
)
def test_a_model_folder_is_named_with_what_it_lacks(config, tmp_path, file, message):
    folder = random_qwen3(tmp_path / "model", tied=True)
    (folder / file).unlink()
    (folder / "tokenizer_config.json").unlink()
    config.model.path = str(folder)
    with pytest.raises(DataError, match=f"model.path=.*: {message}"):
        make_inputs(config)


@pytest.mark.parametrize(("key", "attribute"), [("data.train", "train"), ("data.eval", "eval")])
def test_bad_data_is_named_by_its_key_its_file_and_its_line(config, tmp_path, key, attribute):
    file = tmp_path / "broken.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt":\n')
    setattr(config.data, attribute, str(file))
    with pytest.raises(DataError, match=f"{key}: .*broken.jsonl:2: not valid JSON"):
        make_inputs(config)


@pytest.fixture
def mixed(config, tmp_path) -> Config:
    """Sums with columns of their own beside the ten rows, whose folder has both splits."""
    (tmp_path / "own.jsonl").write_text('{"q": "2+2=", "a": 4}\n{"q": "3+2=", "a": 5}\n')
    config.data.mixture = [
        MixtureSet("plain", str(tmp_path / "data"), weight=3),
        MixtureSet("own", str(tmp_path / "own.jsonl"), "arithmetic", 0.5, prompt_column="q", answer_column="a"),
    ]
    config.data.train = config.data.eval = "mixture"
    return config


def test_a_mixture_reads_each_data_set_by_its_columns_and_counts_its_rows(mixed, tmp_path):
    inputs = make_inputs(mixed)
    names = [(prompt.data_set, prompt.row, prompt.answer) for prompt in inputs.train]
    assert names == [*(("plain", row, "1") for row in range(9)), ("own", 0, "4"), ("own", 1, "5")]
    assert [note.partition(";")[0] for note in inputs.notes] == [
        "training prompts of plain: 9 of 10 rows",
        "training prompts of own: 2 of 2 rows",
        "held-out prompts of plain: 3 of 3 rows",
        "held-out prompts of own: 256 of 256 rows",
    ]
    save_inputs(inputs, tmp_path)
    assert load_prompts(train_file(tmp_path)) == inputs.train
    order = prompt_order(inputs.train, mixed.data.mixture, shuffle=False, seed=0)
    drawn = [inputs.train[order.position(index)] for index in range(14)]
    assert [prompt.row for prompt in drawn if prompt.data_set == "own"] == [0, 1]
    assert [prompt.row for prompt in drawn if prompt.data_set == "plain"] == [*range(9), *range(3)]


def test_a_bad_row_of_a_mixture_is_named_by_data_set_file_and_line(mixed, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"q": "2+2=", "a": 4}\n{"q": "3+2="}\n')
    with pytest.raises(DataError, match=r"data\.mixture, own: data\.train: .*own\.jsonl:2: no column 'a'"):
        make_inputs(mixed)
    mixed.data.mixture[1].eval = None
    (tmp_path / "own.jsonl").write_text('{"q": "2+2=", "a": 4}\n')
    with pytest.raises(DataError, match=r"data\.mixture, own: data\.eval: .*own\.jsonl is one file, .* set eval"):
        make_inputs(mixed)
