"""What an environment says, as token ids that go on from what was sampled. Sampled tokens are never tokenized again."""

from __future__ import annotations

from typing import Any

from asyncrl.environments.base import Observation
from asyncrl.environments.pool import EpisodeFailedError

_SPOKEN = "\N{WHITE MEDIUM SQUARE}"
"""Stands for what the policy said, where a chat template is rendered to see what comes after it."""


class ObservationTokens:
    """Tokenizes observations.

    Args:
        tokenizer: a transformers tokenizer, the policy's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def opening(self, observation: Observation) -> list[int]:
        """What an episode begins with, in place of its row's prompt.

        Raises:
            EpisodeFailedError: as in `reply`.
        """
        if isinstance(observation, str):
            return self._checked(self._tokenizer(observation)["input_ids"])
        if isinstance(observation[0], dict):
            return self._tokenized(self._rendered(observation))
        return self._checked(observation)

    def reply(self, observation: Observation, after_eos: bool) -> list[int]:
        """What follows the policy's turn. Messages come with all that the chat template puts around them.

        Args:
            after_eos: the turn ended with EOS; else the template's own end of a turn is part of the reply.

        Raises:
            EpisodeFailedError: no token at all, an id outside of the vocabulary, or messages that the chat template
                refuses or that have none.
        """
        if isinstance(observation, str):
            return self._tokenized(observation)
        if not isinstance(observation[0], dict):
            return self._checked(observation)
        before = [{"role": "user", "content": "."}, {"role": "assistant", "content": _SPOKEN}]
        rest = self._rendered([*before, *observation]).partition(_SPOKEN)[2]
        return self._tokenized(rest.removeprefix(self._tokenizer.eos_token) if after_eos else rest)

    def text(self, token_ids: list[int]) -> str:
        decoded: str = self._tokenizer.decode(token_ids)
        return decoded

    def _rendered(self, messages: Any) -> str:
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise EpisodeFailedError("the environment answered messages, but the tokenizer has no chat template")
        try:
            rendered: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise EpisodeFailedError(f"the chat template refused the environment's messages: {error}") from error
        return rendered

    def _tokenized(self, text: str) -> list[int]:
        return self._checked(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _checked(self, token_ids: Any) -> list[int]:
        if not token_ids or min(token_ids) < 0 or max(token_ids) >= len(self._tokenizer):
            raise EpisodeFailedError(f"the observation is no tokens of the model: {token_ids!r:.200}")
        return list(token_ids)
