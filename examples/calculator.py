"""A tiny model learns to call a calculator: `asyncrl launch --config examples/calculator.yaml`.

    37*46=  ?37*46  =1702;  1702        sampled: `?37*46` and `1702`; the rest is the prompt and the calculator's

It is warmed up on guesses, nearly all of them wrong, and on a few calls, so that it knows the form but rarely uses it.
"""

import random
import re

from asyncrl.environments.base import Action, Row, Step

NUM_TEST_ROWS = 256
CALLS = 0.25
"""Share of calls in the warm-up; the others are guesses."""


class Calculator:
    """Multiplies what follows a `?`; anything else is the final answer."""

    async def reset(self, row: Row) -> None:
        """The row's prompt stands as it is."""
        self._answer = row.answer

    async def step(self, action: Action) -> Step:
        """A call is answered with the product, an answer with 1 or 0."""
        if not action.text.startswith("?"):
            return Step(reward=float(action.text == self._answer), done=True)
        call = re.fullmatch(r"\?(\d{1,2})\*(\d{1,2})", action.text)
        return Step(f"={int(call[1]) * int(call[2])};" if call else "=?;")

    def rows(self, split: str, seed: int) -> list[tuple[str, str]]:
        """Products of two numbers of two digits; train and test share none."""
        factors = [(a, b) for a in range(10, 100) for b in range(10, 100)]
        random.Random(seed).shuffle(factors)
        chosen = factors[:NUM_TEST_ROWS] if split == "test" else factors[NUM_TEST_ROWS:]
        rows = [(f"{a}*{b}=", str(a * b)) for a, b in chosen]
        return rows if split != "warmup" else warmup_rows(rows, random.Random(seed))


def warmup_rows(rows: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """What to say → what is said: guesses, and both turns of a call."""
    said = []
    for prompt, answer in rows:
        call = f"?{prompt[:-1]}"
        if rng.random() < CALLS:
            said += [(prompt, call), (f"{prompt}{call}<eos>={answer};", answer)]
        else:
            said.append((prompt, str(rng.randint(100, 9999))))
    return said
