"""TRL's GRPOTrainer on given completions. Runs in TRL's own environment; started by `learner_beside_trl.py`.

    TRL_PYTHON trl_learner.py TASK.json

Each line on standard input is the path of a batch. It trains on that and answers with a line: the step's CPU seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """CPU seconds from the beginning of a step to its end, without what runs while it is paused."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._begun_s = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begun_s = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        print(time.process_time() - self._begun_s, file=self._answers, flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        begun_s = time.process_time()
        yield
        self._begun_s += time.process_time() - begun_s


class GivenCompletions(GRPOTrainer):
    """Takes completions and rewards from files. All else is TRL's own."""

    def __init__(self, clock: Clock, **arguments: Any) -> None:
        super().__init__(reward_funcs=given_reward, callbacks=[clock], **arguments)
        self._clock = clock

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        """What TRL's own returns: token ids of prompts and completions, no mask of tools, texts, no logprobs, columns
        for the reward function, no images.
        """
        with self._clock.paused():
            with np.load(sys.stdin.readline().rstrip("\n")) as batch:
                group_size = len(batch["lengths"]) // len(batch["prompt_lengths"])
                prompt_ids = [ids for ids in cut(batch["prompts"], batch["prompt_lengths"]) for _ in range(group_size)]
                completion_ids = cut(batch["tokens"], batch["lengths"])
                rewards = batch["rewards"].tolist()
            return prompt_ids, completion_ids, None, [""] * len(rewards), None, {"reward": rewards}, None, []

    def _calculate_rewards(self, *arguments: Any) -> torch.Tensor:
        with self._clock.paused():
            return super()._calculate_rewards(*arguments)


def given_reward(reward: list[float], **_: Any) -> list[float]:
    return reward


def cut(tokens: NDArray[np.int32], lengths: NDArray[np.int32]) -> list[list[int]]:
    """Sequences behind one another → one list each."""
    return [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]


def train(task: dict[str, Any], answers: TextIO) -> None:
    num_sequences = task["num_groups"] * task["group_size"]
    config = GRPOConfig(
        output_dir=task["folder"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=task["at_once"],
        gradient_accumulation_steps=num_sequences // task["at_once"],
        num_generations=task["group_size"],
        max_completion_length=task["max_tokens"],
        temperature=1.0,
        learning_rate=task["lr"],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=task["lr_warmup_steps"],
        max_grad_norm=task["max_grad_norm"],
        optim="adamw_torch_fused",
        beta=0.0,
        max_steps=task["num_steps"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    GivenCompletions(
        Clock(answers),
        model=AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": ""}] * (task["num_groups"] * task["num_steps"])),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
    ).train()


def main() -> None:
    answers = sys.stdout
    with redirect_stdout(sys.stderr):  # where the trainer prints
        train(json.loads(Path(sys.argv[1]).read_text()), answers)


if __name__ == "__main__":
    main()
