"""Everything a run reads, made ready before Ray starts: rows → (tiny model) → tokenized prompts → number of steps.

What is wrong with the data, the model folder or the combination of both shows here, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from asyncrl.commands.reward_trial import check_answers, try_functions
from asyncrl.config.data import MIXTURE, DataConfig, MixtureSet
from asyncrl.config.model_shape import ModelShape, read_model_shape
from asyncrl.config.schema import Config
from asyncrl.data.arithmetic import arithmetic_rows, forget_carries
from asyncrl.data.hub import HUB_PREFIX, hub_folder
from asyncrl.data.prompts import save_prompts, tokenize_prompts
from asyncrl.data.rows import Columns, Row, read_rows
from asyncrl.data.splits import Split, split_files
from asyncrl.data.tiny_model import build_tiny_model, tiny_model_shape
from asyncrl.environments.resolve import environment_rows
from asyncrl.errors import ConfigError, DataError
from asyncrl.rewards.functions import resolve
from asyncrl.run.directory import eval_file, train_file
from asyncrl.types import Prompt

TINY_MODELS_DIR = "models"
"""Under run.dir, beside the runs, so that runs of the same recipe share a model."""

_ANY_LENGTH = 1 << 30


@dataclass(frozen=True)
class RunInputs:
    """What the roles are given."""

    model_path: str
    """As given, or the folder of the tiny model that was made."""
    shape: ModelShape
    train: list[Prompt]
    eval: list[Prompt]
    num_steps: int
    notes: list[str]
    """What a user should know about the data, one sentence each."""
    tokenizer: Any
    """The model's."""


def make_inputs(config: Config) -> RunInputs:
    """Reads the data, makes the tiny model where it is asked for, tokenizes.

    Raises:
        DataError: a file, row, column or model folder that cannot be used, or an answer that no reward can read.
        ConfigError: a reward function that fails on the first row, fewer prompts than one step needs, or a chat
            template that does not exist.
    """
    model, is_tiny = config.model, config.model.path == "tiny"
    given_shape = None if is_tiny else _require_model(model.path, model.trust_remote_code)
    train_rows, eval_rows = read_data(config)
    model_path = _tiny_model(config, train_rows) if is_tiny else model.path
    shape = given_shape or tiny_model_shape(Path(model_path))
    tokenizer = _tiny_tokenizer(model_path) if is_tiny else _tokenizer(model_path, model.trust_remote_code)
    train, notes = tokenize(train_rows, tokenizer, config.data, config.data.train, "training")
    evaluation: list[Prompt] = []
    if eval_rows:
        assert config.data.eval is not None
        evaluation, more = tokenize(eval_rows, tokenizer, config.data, config.data.eval, "held-out")
        notes += more
    return RunInputs(model_path, shape, train, evaluation, _num_steps(config, len(train)), notes, tokenizer)


def save_inputs(inputs: RunInputs, run_dir: Path) -> None:
    """Writes the prompts where the replay role reads them."""
    save_prompts(train_file(run_dir), inputs.train)
    if inputs.eval:
        save_prompts(eval_file(run_dir), inputs.eval)


def read_data(config: Config) -> tuple[list[Row], list[Row]]:
    """The training and the held-out rows, which the rewards can score.

    Raises:
        DataError, ConfigError: as `make_inputs`.
    """
    train = _rows(config, config.data.train, "train")
    held_out = _rows(config, config.data.eval, "test") if config.data.eval is not None else []
    if config.environment.name is None:  # else it scores its episodes itself
        check_answers(config.reward, {"data.train": train, "data.eval": held_out})
        try_functions(config.reward, train[0])
    return train, held_out


def _tiny_model(config: Config, rows: list[Row]) -> str:
    """The folder of the tiny model, which learns from the rows."""
    parent = Path(config.run.dir) / TINY_MODELS_DIR
    pairs = _warmup_pairs(config, rows)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run.dir={config.run.dir}: cannot make {parent}: {error}") from error
    return str(build_tiny_model(parent.resolve(), pairs, config.model.warmup_steps, config.run.seed))


def _warmup_pairs(config: Config, rows: list[Row]) -> list[tuple[str, str]]:
    """What model.path=tiny is warmed up on; its tokenizer has their characters."""
    pairs = [(row.prompt, row.answer) for row in rows]
    if config.data.train == "arithmetic":
        return forget_carries(pairs, config.run.seed)
    if config.data.train == "environment":
        return environment_rows(config.environment, "warmup", config.run.seed)
    return pairs


def _rows(config: Config, source: str, split: Split) -> list[Row]:
    if source == MIXTURE:
        return [row for data_set in config.data.mixture for row in _rows_of_set(config, data_set, split)]
    if source == "arithmetic":
        return [Row(prompt, answer) for prompt, answer in arithmetic_rows(split, config.run.seed)]
    if source == "environment":
        return [Row(prompt, answer) for prompt, answer in environment_rows(config.environment, split, config.run.seed)]
    try:
        path = hub_folder(source) if source.startswith(HUB_PREFIX) else Path(source)
        return read_rows(split_files(path, split), _columns(config))
    except DataError as error:
        raise DataError(f"data.{'train' if split == 'train' else 'eval'}: {error}") from error


def _rows_of_set(config: Config, data_set: MixtureSet, split: Split) -> list[Row]:
    """The rows of one data set of the mixture, each with its name."""
    data = config.data
    of_set = replace(
        data,
        prompt_column=data_set.prompt_column or data.prompt_column,
        answer_column=data_set.answer_column or data.answer_column,
    )
    source = data_set.path if split == "train" else data_set.eval or data_set.path
    try:
        if split == "test" and data_set.eval is None and Path(source).is_file():
            raise DataError(f"data.eval: {source} is one file, which is trained on; set eval of the data set")
        rows = _rows(replace(config, data=of_set), source, split)
    except DataError as error:
        raise DataError(f"data.mixture, {data_set.name}: {error}") from error
    return [replace(row, data_set=data_set.name) for row in rows]


def tokenize(
    rows: list[Row], tokenizer: Any, data: DataConfig, source: str, kind: str
) -> tuple[list[Prompt], list[str]]:
    """The prompts, and a sentence on each data set: how many of its rows they are."""
    prompts, notes = [], []
    for name, of_set in groupby(rows, key=lambda row: row.data_set):
        found = list(of_set)
        tokenized, num_dropped = tokenize_prompts(found, tokenizer, data, name or source, name)
        prompts += tokenized
        dropped = f"; {num_dropped} dropped as longer than data.max_prompt_tokens={data.max_prompt_tokens}"
        title = f"{kind} prompts of {name}" if name else f"{kind} prompts"
        notes.append(f"{title}: {len(tokenized)} of {len(found)} rows" + dropped * bool(num_dropped))
    return prompts, notes


def _columns(config: Config) -> Columns:
    """Those of the configuration, and what the reward functions take by name."""
    extra: dict[str, bool] = {}
    rewards = [resolve(term) for term in config.reward.terms]
    for reward in rewards:
        for name, must_be_there in reward.columns.items():
            extra[name] = extra.get(name, False) or must_be_there
    return Columns(
        prompt=config.data.prompt_column,
        answer=config.data.answer_column,
        extra=extra,
        every=config.environment.name is not None or any(reward.takes_every_column for reward in rewards),
    )


def _require_model(path: str, trust_remote_code: bool) -> ModelShape:
    """Refuses at once what transformers would look for on the hub for a minute, or miss only when Ray has started."""
    shape = read_model_shape(path, trust_remote_code)
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise DataError(f"model.path={path}: the folder has no weights (*.safetensors or *.bin)")
    return shape


def prompt_tokenizer(config: Config, rows: list[Row]) -> Any:
    """The tokenizer that a run would have, without making its tiny model.

    Raises:
        DataError: model.path has none that can be loaded.
    """
    if config.model.path == "tiny":
        from asyncrl.data.tiny_tokenizer import build_tokenizer

        return build_tokenizer(_warmup_pairs(config, rows), max_length=_ANY_LENGTH)
    return _tokenizer(config.model.path, config.model.trust_remote_code)


def _tiny_tokenizer(model_path: str) -> Any:
    """As AutoTokenizer would load it, which imports torch and every kind of model for that."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(model_path)


def _tokenizer(model_path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={model_path}: its tokenizer cannot be loaded: {error}") from error
    if len(tokenizer) <= 1:  # what transformers makes of a config.json alone
        raise DataError(f"model.path={model_path}: it has no tokenizer; add tokenizer.json and tokenizer_config.json")
    return tokenizer


def _num_steps(config: Config, num_prompts: int) -> int:
    if config.run.steps is not None:
        return config.run.steps
    num_steps = config.run.epochs * num_prompts // config.learner.batch_size
    if num_steps == 0:
        raise ConfigError(
            f"run.epochs={config.run.epochs} of {num_prompts} prompts are fewer than one step of "
            f"learner.batch_size={config.learner.batch_size}; lower it or set run.steps"
        )
    return num_steps
