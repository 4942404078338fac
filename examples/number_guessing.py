"""A tiny model learns to guess a digit from hints: `asyncrl launch --config examples/number_guessing.yaml`.

    guess:  5  >  7  <  6               sampled: `5`, `7`, `6`; `>` and `<` say where the secret lies

Four guesses find every digit, if each halves what is left. The model is warmed up on a careless player's games.
"""

import random

from asyncrl.environments.base import Action, Row, Step

PROMPT = "guess:"
MAX_TURNS = 4
CARE = 0.3
"""Share of the guesses in the warm-up that heed the hints; the others are any digit."""


class NumberGuessing:
    """Says whether the secret is more or less than the guess."""

    async def reset(self, row: Row) -> None:
        """The secret is the row's answer."""
        self._secret = int(row.answer)

    async def step(self, action: Action) -> Step:
        """1 for the secret; a hint for any other digit; the end for anything else."""
        if not (len(action.text) == 1 and action.text.isdecimal()):
            return Step(done=True)
        guess = int(action.text)
        if guess == self._secret:
            return Step(reward=1.0, done=True)
        return Step(">" if guess < self._secret else "<")

    def rows(self, split: str, seed: int) -> list[tuple[str, str]]:
        """The same prompt for each secret."""
        if split == "warmup":
            return warmup_rows(random.Random(seed))
        return [(PROMPT, str(secret)) for secret in range(10)]


def warmup_rows(rng: random.Random) -> list[tuple[str, str]]:
    """What was said and heard so far → the next guess."""
    said = []
    for _ in range(2000):
        history, secret, low, high = PROMPT, rng.randrange(10), 0, 9
        for _ in range(MAX_TURNS):
            guess = rng.randint(low, high) if rng.random() < CARE else rng.randrange(10)
            said.append((history, str(guess)))
            if guess == secret:
                break
            low, high = (max(low, guess + 1), high) if guess < secret else (low, min(high, guess - 1))
            history += f"{guess}<eos>{'>' if guess < secret else '<'}"
    return said
