"""Everything a run reads, made ready before Ray starts: rows → (tiny model) → tokenized prompts → number of steps.

What is wrong with the data, the model folder or the combination of both shows here, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from asyncrl.config.model_shape import read_model_shape
from asyncrl.config.schema import Config
from asyncrl.data.arithmetic import arithmetic_rows, forget_carries
from asyncrl.data.prompts import save_prompts, tokenize_prompts
from asyncrl.data.read import read_rows, resolve_split
from asyncrl.data.tiny_model import build_tiny_model
from asyncrl.environments.resolve import environment_rows
from asyncrl.errors import ConfigError, DataError
from asyncrl.run.directory import eval_file, train_file
from asyncrl.types import Prompt

Rows = list[tuple[str, str]]
Split = Literal["train", "test"]

TINY_MODELS_DIR = "models"
"""Under run.dir, beside the runs, so that runs of the same recipe share a model."""


@dataclass(frozen=True)
class RunInputs:
    """What the roles are given."""

    model_path: str
    """As given, or the folder of the tiny model that was made."""
    train: list[Prompt]
    eval: list[Prompt]
    num_steps: int
    notes: list[str]
    """What a user should know about the data, one sentence each."""


def make_inputs(config: Config) -> RunInputs:
    """Reads the data, makes the tiny model where it is asked for, tokenizes.

    Raises:
        DataError: a file, row, column or model folder that cannot be used.
        ConfigError: fewer prompts than one step needs, or a chat template that does not exist.
    """
    disable_progress_bar()
    if config.model.path != "tiny":
        _require_model(config.model.path, config.model.trust_remote_code)
    train_rows = _rows(config, config.data.train, "train")
    eval_rows = _rows(config, config.data.eval, "test") if config.data.eval is not None else []
    model_path = config.model.path
    if model_path == "tiny":
        parent = Path(config.run.dir) / TINY_MODELS_DIR
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.dir={config.run.dir}: cannot make {parent}: {error}") from error
        warmup_rows = _warmup_rows(config, train_rows)
        model_path = str(build_tiny_model(parent.resolve(), warmup_rows, config.model.warmup_steps, config.run.seed))
    tokenizer = _tokenizer(model_path, config.model.trust_remote_code)
    train, num_dropped = tokenize_prompts(train_rows, tokenizer, config.data, config.data.train)
    notes = [f"training prompts: {len(train)} of {len(train_rows)} rows" + _dropped(num_dropped, config)]
    evaluation: list[Prompt] = []
    if eval_rows:
        assert config.data.eval is not None
        evaluation, num_dropped = tokenize_prompts(eval_rows, tokenizer, config.data, config.data.eval)
        notes.append(f"held-out prompts: {len(evaluation)} of {len(eval_rows)} rows" + _dropped(num_dropped, config))
    return RunInputs(model_path, train, evaluation, _num_steps(config, len(train)), notes)


def save_inputs(inputs: RunInputs, run_dir: Path) -> None:
    """Writes the prompts where the replay role reads them."""
    save_prompts(train_file(run_dir), inputs.train)
    if inputs.eval:
        save_prompts(eval_file(run_dir), inputs.eval)


def _rows(config: Config, source: str, split: Split) -> Rows:
    if source == "arithmetic":
        return arithmetic_rows(split, config.run.seed)
    if source == "environment":
        return environment_rows(config.environment, split, config.run.seed)
    try:
        file = resolve_split(Path(source), split)
        return read_rows(file, config.data.prompt_column, config.data.answer_column)
    except DataError as error:
        raise DataError(f"data.{'train' if split == 'train' else 'eval'}: {error}") from error


def _warmup_rows(config: Config, train_rows: Rows) -> Rows:
    """What the tiny model learns before the run."""
    if config.data.train == "arithmetic":
        return forget_carries(train_rows, config.run.seed)
    if config.data.train == "environment":
        return environment_rows(config.environment, "warmup", config.run.seed)
    return train_rows


def _require_model(path: str, trust_remote_code: bool) -> None:
    """Refuses at once what transformers would look for on the hub for a minute, or miss only when Ray has started."""
    read_model_shape(path, trust_remote_code)
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise DataError(f"model.path={path}: the folder has no weights (*.safetensors or *.bin)")


def _tokenizer(model_path: str, trust_remote_code: bool) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise DataError(f"model.path={model_path}: its tokenizer cannot be loaded: {error}") from error
    if len(tokenizer) <= 1:  # what transformers makes of a config.json alone
        raise DataError(f"model.path={model_path}: it has no tokenizer; add tokenizer.json and tokenizer_config.json")
    return tokenizer


def _dropped(num_dropped: int, config: Config) -> str:
    return f"; {num_dropped} dropped as longer than data.max_prompt_tokens={config.data.max_prompt_tokens}" * bool(
        num_dropped
    )


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
