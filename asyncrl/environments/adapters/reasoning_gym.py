"""Tasks of the package reasoning-gym as `environment.name=reasoning_gym:TASK`: one turn, scored by the task itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import reasoning_gym
from reasoning_gym.utils import extract_answer

from asyncrl.environments.base import Action, Row, Step

NUM_TEST_ROWS = 200


class ReasoningGym:
    """One question.

    Args:
        task: a name of reasoning-gym's, such as leg_counting.
        num_rows: questions to train on; NUM_TEST_ROWS others are held out.
        args: the task's own.

    Raises:
        ValueError, TypeError: reasoning-gym has no such task, or the task refuses its arguments.
    """

    def __init__(self, task: str, num_rows: int = 1000, **args: Any) -> None:
        self._num_rows = num_rows
        size = num_rows + NUM_TEST_ROWS
        self._dataset = cache(lambda seed: reasoning_gym.create_dataset(task, seed=seed, size=size, **args))
        self._dataset(0)

    async def reset(self, row: Row) -> None:
        """The row's answer says which question it is."""
        seed, index = map(int, row.answer.split(":"))
        self._questions = self._dataset(seed)
        self._entry = self._questions[index]

    async def step(self, action: Action) -> Step:
        """The score, in [0, 1], of what stands between <answer> and </answer>, else of the whole text."""
        answer = extract_answer(action.text) or action.text.strip()
        return Step(reward=float(self._questions.score_answer(answer, self._entry)), done=True)

    def rows(self, split: str, seed: int) -> list[tuple[str, str]]:
        """Questions, and where the dataset of this seed has them; for the warm-up, their answers."""
        dataset = self._dataset(seed)
        if split == "warmup":
            return [(dataset[index]["question"], dataset[index]["answer"]) for index in range(self._num_rows)]
        first, end = (0, self._num_rows) if split == "train" else (self._num_rows, self._num_rows + NUM_TEST_ROWS)
        return [(dataset[index]["question"], f"{seed}:{index}") for index in range(first, end)]
