"""`asyncrl eval`: how good a model, a run or a checkpoint is on data files. Without Ray.

model | run | checkpoint ─▶ checked, tokenized ─▶ weights exported ─▶ a process samples and scores ─▶ figures
└──────────────── bad input ends here ─────────┘
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from asyncrl.api.reward_names import with_rewards
from asyncrl.cluster.environment import environment
from asyncrl.cluster.interfaces import group_variables
from asyncrl.cluster.machine import this_node
from asyncrl.cluster.topology import resolve_device
from asyncrl.commands.export import export, run_of
from asyncrl.commands.inputs import make_inputs
from asyncrl.config.checks.check import check
from asyncrl.config.load import load
from asyncrl.config.model_shape import read_model_shape
from asyncrl.config.schema import Config
from asyncrl.data.prompts import save_prompts
from asyncrl.errors import ConfigError, RunError
from asyncrl.evaluation.figures import Answer, DataSetFigures, data_set_figures, vote_of
from asyncrl.evaluation.sample import COMPLETIONS_FILE, PROBLEMS_FILE
from asyncrl.generate.engines.installed import check_engines
from asyncrl.rewards.functions import resolve
from asyncrl.run.directory import eval_file, log_file, log_tail, save_config
from asyncrl.run.plain_text import plain
from asyncrl.transport.sockets import LOOPBACK
from asyncrl.types import Prompt

MAX_SHOWN_PROBLEMS = 5

log = logging.getLogger(__name__)

Prompts = list[tuple[str, Prompt]]
"""(data file, prompt), file by file."""


def evaluate(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    k: Sequence[int] = (),
    overrides: Sequence[str] = (),
    rewards: Sequence[Callable[..., Any]] = (),
    answers: str | Path | None = None,
) -> list[DataSetFigures]:
    """Samples completions of every prompt, scores them as a run does, and returns the figures of each data file.

    Args:
        model: a Hugging Face folder or hub name; or a run directory (its latest checkpoint) or one checkpoint of it,
            which bring the run's configuration.
        data: files, as for `data.eval`.
        k: of pass@k and maj@k; so many completions are sampled, or `run.eval_samples` when that is more.
        overrides: `key=value` of the configuration, such as `reward.terms`, `run.eval_temperature`,
            `generator.max_tokens`.
        rewards: as of `asyncrl.launch`.
        answers: a .parquet file for every completion with its score; it must not exist.

    Raises:
        UserError: bad input; no engine was started.
        RunError: the engine failed, or no prompt got an answer.
    """
    config = _config(str(model), data, k, overrides, rewards)
    out = None if answers is None else _new_file(Path(answers))
    prompts = _read_prompts(config, [str(file) for file in data])
    with tempfile.TemporaryDirectory(prefix="asyncrl-eval-") as temporary:
        folder = Path(temporary)
        if run_of(Path(model)) is not None:
            exported = str(export(Path(model), folder / "model"))
            config = replace(config, model=replace(config.model, path=exported))
        scored = _sample(folder, config, prompts)
    if out is not None:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([asdict(answer) for answer in scored]), out)
    return [_figures(str(file), scored, prompts, k) for file in data]


def _config(
    model: str, data: Sequence[str | Path], k: Sequence[int], overrides: Sequence[str], rewards: Sequence[Any]
) -> Config:
    """The run's or the default configuration with all that is asked for; refuses what cannot be evaluated."""
    if not data or len(set(map(str, data))) < len(data):
        raise ConfigError("data: name at least one file, and each once")
    if min(k, default=1) < 1:
        raise ConfigError(f"k={min(k)}: k is 1 or more")
    run = run_of(Path(model))
    base = [f"model.path={model}", "data.train=none"] if run is None else []
    config = load(run and run / "config.yaml", [*base, "run.eval_prompts=null", "run.eval_samples=1", *overrides])
    config = replace(config, run=replace(config.run, eval_samples=max(config.run.eval_samples, *k, 1)))
    if config.run.eval_samples > 1 and config.run.eval_temperature == 0:
        raise ConfigError(
            f"run.eval_temperature=0 gives the same completion {config.run.eval_samples} times; set it, for example "
            "run.eval_temperature=0.6"
        )
    config = with_rewards(config, rewards)
    for term in config.reward.terms:
        resolve(term)
    device = resolve_device(config, [this_node()])
    check_engines(config.generator, device)
    check(config, device, read_model_shape(config.model.path, config.model.trust_remote_code))
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return replace(config, model=replace(config.model, dtype=dtype), cluster=replace(config.cluster, device=device))


def _new_file(path: Path) -> Path:
    if path.suffix != ".parquet" or path.exists() or not path.parent.is_dir():
        raise ConfigError(f"answers {path}: give a new .parquet file in a folder that exists")
    return path


def _read_prompts(config: Config, files: Sequence[str]) -> Prompts:
    prompts: Prompts = []
    for file in files:
        of_file = replace(config, data=replace(config.data, train=file, eval=file), run=replace(config.run, steps=1))
        found = make_inputs(of_file).eval
        prompts += [(file, prompt) for prompt in found[: config.run.eval_prompts]]
    return prompts


def _sample(folder: Path, config: Config, prompts: Prompts) -> list[Answer]:
    """Runs `sample.py` over the prompts."""
    output = log_file(folder, "generator")
    output.parent.mkdir()
    save_config(folder, replace(config, run=replace(config.run, eval_prompts=None)))
    save_prompts(eval_file(folder), [prompt for _, prompt in prompts])
    variables = {**os.environ, **environment("generator", config.cluster.device, config)} | group_variables(LOOPBACK)
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncrl.evaluation.sample", str(folder)],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait()  # which has deadlines of its own, see there
        finally:
            process.kill()  # its reaper ends its children
    if code != 0:
        raise RunError(f"the engine's process ended with {code}; its last lines:\n{log_tail(folder, 'generator')}")
    for problem in (folder / PROBLEMS_FILE).read_text(encoding="utf-8").splitlines()[:MAX_SHOWN_PROBLEMS]:
        log.warning(plain(problem))
    answers = []
    for row in pyarrow.parquet.read_table(folder / COMPLETIONS_FILE).to_pylist():
        file, prompt = prompts[row.pop("position")]
        vote = vote_of(row["completion"])
        answers.append(Answer(file, prompt.row, prompt=prompt.text, reference=prompt.answer, final_answer=vote, **row))
    return answers


def _figures(file: str, answers: Sequence[Answer], prompts: Prompts, k: Sequence[int]) -> DataSetFigures:
    mine = [answer for answer in answers if answer.data == file]
    if not mine:
        raise RunError(f"{file}: no prompt got an answer within replay.lease_timeout_s")
    num_answered = len({answer.row for answer in mine})
    return data_set_figures(mine, k, sum(name == file for name, _ in prompts) - num_answered)
