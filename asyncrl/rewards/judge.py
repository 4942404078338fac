"""The reward `judge`: a language model behind an OpenAI-compatible endpoint reads a completion and says a score.

Asked from the generator's own event loop, many at once, since a call only waits. A reply is kept in the run's folder
(judge_store.py), so that the same question is paid for once, also after a restart. What a call comes to is a score or a
failure, never a zero that nobody gave.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import httpx

from asyncrl.rewards.judge_config import JudgeConfig
from asyncrl.rewards.judge_store import JudgeStore

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 60.0
_MAX_SHOWN_CHARS = 200


class JudgeError(Exception):
    """No score: the endpoint failed, its reply has none, or the budget is spent; says which."""


class Judge:
    """Scores completions. Safe to share between the tasks of one event loop."""

    def __init__(self, config: JudgeConfig, store: JudgeStore) -> None:
        self._config = config
        self._store = store
        self._url = f"{config.url.rstrip('/')}/chat/completions"
        self._turns = asyncio.Semaphore(config.max_concurrent)
        self._asking: dict[str, asyncio.Task[str]] = {}
        """By question: the same one is asked once."""
        self._client: httpx.AsyncClient | None = None

    async def score(self, values: Mapping[str, Any]) -> float:
        """In [0, 1].

        Args:
            values: what the prompt may name.

        Raises:
            JudgeError: there is no score.
        """
        question = {"role": "user", "content": self._config.prompt.format_map(values)}
        body = {"temperature": 0, **self._config.body, "model": self._config.model, "messages": [question]}
        key = hashlib.sha256(json.dumps([self._url, body], sort_keys=True).encode()).hexdigest()
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._reply(key, body))
            self._asking[key].add_done_callback(lambda _: self._asking.pop(key))
        return _score_in(await asyncio.shield(self._asking[key]))

    async def _reply(self, key: str, body: dict[str, Any]) -> str:
        kept = self._store.reply(key)
        if kept is not None:
            return kept
        async with self._turns:
            wait_s, reason = _FIRST_WAIT_S, ""
            for attempt in range(self._config.max_attempts):
                if attempt > 0:
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                spent = self._store.spend_call(self._config.max_calls, self._config.max_total_tokens)
                if spent is not None:
                    raise JudgeError(f"the judge's budget is spent: {spent}")
                try:
                    async with asyncio.timeout(self._config.timeout_s):
                        response = await self._post(body)
                except TimeoutError:
                    reason = f"no reply within timeout_s = {self._config.timeout_s:g} s"
                    continue
                except httpx.TransportError as error:
                    reason = f"{type(error).__name__}: {error}"
                    continue
                if response.is_success:
                    reply, num_tokens = _content(response)
                    self._store.keep(key, reply, num_tokens)
                    return reply
                reason = f"HTTP {response.status_code}: {response.text[:_MAX_SHOWN_CHARS]!r}"
                if response.status_code not in _RETRIED:
                    raise JudgeError(f"{self._url} refused the request: {reason}")
                wait_s = max(wait_s, _retry_after(response))
        raise JudgeError(f"{self._url} gave no reply in {self._config.max_attempts} attempts, at last {reason}")

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        if self._client is None:
            limits = httpx.Limits(max_connections=self._config.max_concurrent)
            self._client = httpx.AsyncClient(timeout=None, limits=limits)
        variable = self._config.api_key_env
        headers = {} if variable is None else {"authorization": f"Bearer {os.environ[variable]}"}
        return await self._client.post(self._url, json=body, headers=headers)


def _content(response: httpx.Response) -> tuple[str, int]:
    """The reply, and the tokens that the endpoint counted."""
    try:
        answer = response.json()
        return str(answer["choices"][0]["message"]["content"]), int((answer.get("usage") or {}).get("total_tokens", 0))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        shown = repr(response.text[:_MAX_SHOWN_CHARS])
        raise JudgeError(f"{response.url} answered no chat completion: {shown}") from error


def _score_in(reply: str) -> float:
    """What stands after the last `Score:`, or the whole reply."""
    stated = re.findall(r"score\W{0,5}?[:=]\W{0,5}?(-?\d+(?:\.\d+)?)", reply, re.IGNORECASE)
    try:
        score = float(stated[-1] if stated else reply)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise JudgeError(f"the judge's reply has no score from 0 to 1: {reply[-_MAX_SHOWN_CHARS:]!r}")
    return score


def _retry_after(response: httpx.Response) -> float:
    stated = response.headers.get("retry-after", "")
    return min(float(stated), _LONGEST_WAIT_S) if stated.isdecimal() else 0.0
