"""`python -m asyncrl.evaluation.sample FOLDER`: the prompts of a folder → scored completions, with one engine.

A process of its own, because vLLM needs its environment before Python starts and may fork only a process that has not
computed.

    FOLDER/config.yaml, prompts_eval.parquet ──▶ completions.parquet, problems.txt

Consumes   the first two files. Produces the others.
Waits for  the engine (run.startup_timeout_s, then the process ends with its stacks) and each prompt's completions
           (replay.lease_timeout_s; then the prompt is tried again, replay.max_lease_attempts times in all).
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from transformers import AutoTokenizer

from asyncrl.cluster.child_reaper import watch_over_this_process
from asyncrl.cluster.roles import engine_spec, roll_out_of
from asyncrl.config.engines import engine_names
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.data.prompts import load_prompts
from asyncrl.errors import RunError
from asyncrl.generate.engines.base import completion_text
from asyncrl.generate.engines.registry import engine_class
from asyncrl.generate.finished_completions import Finished
from asyncrl.generate.rollout import RollOut
from asyncrl.replay.evaluation import Evaluation
from asyncrl.run.directory import eval_file
from asyncrl.types import Group

COMPLETIONS_FILE = "completions.parquet"
PROBLEMS_FILE = "problems.txt"
"""A line for each prompt with a completion that could not be sampled or scored."""

log = logging.getLogger(__name__)


def main(folder: Path) -> None:
    log.addHandler(logging.FileHandler(folder / PROBLEMS_FILE, encoding="utf-8"))
    watch_over_this_process()
    config = load(folder / "config.yaml")
    evaluation = Evaluation(load_prompts(eval_file(folder)), config)
    groups = asyncio.run(_evaluate(evaluation, config))
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    rows = [row for position in sorted(groups) for row in _rows(position, groups[position], tokenizer)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / COMPLETIONS_FILE)


async def _evaluate(evaluation: Evaluation, config: Config) -> dict[int, Group]:
    """The group of each prompt that was not given up, by the prompt's position."""
    faulthandler.dump_traceback_later(config.run.startup_timeout_s, exit=True)
    spec = engine_spec(config, on_cpu=config.cluster.device == "cpu")
    engine = engine_class(engine_names(config.generator)[0])(spec, config.generator)
    with ExitStack() as stack:
        stack.callback(engine.shutdown)
        roll_out = roll_out_of(config, engine, stack, judge_file=None)
        await engine.warm_up()
        faulthandler.cancel_dump_traceback_later()
        evaluation.start(version=0)
        groups: dict[int, Group] = {}
        async with asyncio.TaskGroup() as tasks:
            for _ in range(config.generator.max_groups_in_flight):
                tasks.create_task(_answer(evaluation, roll_out, groups))
    return groups


async def _answer(evaluation: Evaluation, roll_out: RollOut, groups: dict[int, Group]) -> None:
    """One prompt after the other, as a generator does, until none is in line."""
    while (grant := evaluation.lease("eval", time.monotonic())) is not None:
        try:
            async with asyncio.timeout(grant.timeout_s):
                groups[grant.index], reasons = await roll_out(grant, Finished())
        except (TimeoutError, RunError) as error:
            log.warning("row %d: %s", grant.row, error or "no group within replay.lease_timeout_s")
            evaluation.fail(grant.lease_id)
            continue
        for reason in reasons[:1]:
            log.warning("row %d: %d completions without a reward: %s", grant.row, len(reasons), reason)


def _rows(position: int, group: Group, tokenizer: Any) -> list[dict[str, Any]]:
    tokens = np.split(group.tokens, np.cumsum(group.lengths)[:-1])
    return [
        {
            "position": position,
            "sample": sample,
            "completion": completion_text(tokenizer, ids),
            "reward": float(group.rewards[sample]),
            "correct": bool(group.correct[sample]),
            "truncated": bool(group.truncated[sample]),
            "num_tokens": len(ids),
        }
        for sample, ids in enumerate(tokens)
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
