"""Tasksets of the package verifiers (0.4) as `environment.name=verifiers:TASKSET`.

verifiers turns the loop around: its harness calls the model, at an endpoint that speaks as OpenAI's. So each episode is
a rollout of verifiers' in the background, and its endpoint is here: a request is the observation, an action the answer.

    reset ─▶ rollout begins ─▶ POST chat/completions ─▶ observation
    step  ─▶ the answer to it ─▶ the next POST ─▶ observation, or the rollout ends: its reward, done
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

import verifiers.v1 as vf
from aiohttp import web
from verifiers.v1.clients.client import SESSION_ID_HEADER
from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.utils.loaders import default_harness_id, load_environment, resolve_env_config

from asyncrl.config.user_code import import_file, is_file_name
from asyncrl.environments.adapters import verifiers_chat
from asyncrl.environments.base import Action, Observation, Row, Step

HELD_OUT = 10
"""One task in so many is for evaluations."""
CHAT = "asyncrl_chat"
Messages = list[dict[str, str]]


def is_held_out(number: int) -> bool:
    """One of each HELD_OUT tasks in a row, at random but always the same.

    Tasksets often have an order: the tenth of each ten may be all that end in the digit 9.
    """
    block, place = divmod(number, HELD_OUT)
    return place == random.Random(block).randrange(HELD_OUT)


class Verifiers:
    """One rollout.

    Args:
        taskset: the id of an installed taskset, or a Python file that exports one as `__all__`.
        num_tasks: how many to take; needed of a taskset that has no end.
        messages: observations are messages; false = their text alone, for a model without a chat template.
        env: verifiers' own configuration of the environment, such as `taskset: {split: train}`. Without
            `agent.harness` the agent chats in this process, without tools.

    Raises:
        ValueError, ImportError, TypeError: verifiers has no such taskset, or refuses its configuration.
    """

    def __init__(self, taskset: str, num_tasks: int | None = None, messages: bool = True, **env: Any) -> None:
        self._env, self._tasks = _loaded(taskset, num_tasks, json.dumps(env))
        self._as_messages = messages
        self._heard: Messages = []
        self._requests: asyncio.Queue[Messages] = asyncio.Queue()
        self._answers: asyncio.Queue[str] = asyncio.Queue()
        self._rollout: asyncio.Task[Any] | None = None
        self._sessions: list[str] = []

    def rows(self, split: str, seed: int) -> list[tuple[str, str]]:
        """Each task's prompt and its number; for the warm-up, the prompts of those that have an answer, with it."""
        of_split = [
            (task, number) for number, task in enumerate(self._tasks) if is_held_out(number) == (split == "test")
        ]
        if split == "warmup":
            answers = [(task.data.prompt_text, getattr(task.data, "answer", None)) for task, _ in of_split]
            return [(prompt, f"{answer}") for prompt, answer in answers if answer]
        return [(task.data.prompt_text or ".", f"{number}") for task, number in of_split]

    async def reset(self, row: Row) -> Observation | None:
        """The rollout of the task whose number is the row's answer, up to its first request."""
        if not (row.answer.isdecimal() and int(row.answer) < len(self._tasks)):
            raise ValueError(f"the row's answer, {row.answer!r}, is no task's number; verifiers needs its own rows")
        await _serving(self._env)
        client = vf.EvalClientConfig(base_url=await _endpoint().url(), api_key_var="none")
        context = vf.ModelContext(model="policy", client=client)
        task = self._tasks[int(row.answer)]
        self._rollout = asyncio.create_task(self._env.run_episode(task, context, on_trace=self._begun))
        opening = await self._next_request()
        if opening is None:
            raise RuntimeError(f"the rollout ended before it asked for a completion: {self._error() or 'no error'}")
        is_the_rows = [(message["role"], message["content"]) for message in opening] == [("user", row.prompt)]
        return None if is_the_rows else self._observation(opening)

    async def step(self, action: Action) -> Step:
        """What the harness asks next, or the reward of the rollout that ended."""
        self._heard.append({"role": "assistant", "content": action.text})
        self._answers.put_nowait(action.text)
        said = await self._next_request()
        if said is not None:
            return Step(self._observation(said))
        error = self._error()
        if error is not None:
            raise RuntimeError(f"verifiers: {error}")
        assert self._rollout is not None
        return Step(reward=sum(trace.reward for trace in self._rollout.result().traces), done=True)

    async def close(self) -> None:
        """Ends the rollout, which gives back what it holds."""
        if self._rollout is not None and not self._rollout.done():
            self._rollout.cancel()
            await asyncio.wait([self._rollout])
        for session in self._sessions:
            _endpoint().episodes.pop(session, None)

    def _begun(self, trace: vf.Trace) -> None:
        self._sessions.append(trace.id)
        _endpoint().episodes[trace.id] = self

    async def complete(self, messages: Messages) -> str:
        """The policy's answer to a request of the harness."""
        self._requests.put_nowait(messages)
        return await self._answers.get()

    async def _next_request(self) -> Messages | None:
        """What is new in it; None when the rollout has ended."""
        assert self._rollout is not None
        asked = asyncio.create_task(self._requests.get())
        await asyncio.wait([asked, self._rollout], return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
            return None
        messages, heard = asked.result(), self._heard
        if messages[: len(heard)] != heard or len(messages) == len(heard):
            raise ValueError("the harness does not go on from what was said: it rewrote the conversation")
        self._heard = [*messages]
        return messages[len(heard) :]

    def _observation(self, messages: Messages) -> Observation:
        return messages if self._as_messages else "\n".join(message["content"] for message in messages)

    def _error(self) -> str | None:
        """Of the rollout that ended."""
        assert self._rollout is not None
        episode = self._rollout.result()
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        return None if episode.ok else f"{errors[-1].type}: {errors[-1].message}" if errors else "the rollout failed"


class Endpoint:
    """Where harnesses reach the policy: one HTTP server of this process."""

    def __init__(self) -> None:
        self.episodes: dict[str, Verifiers] = {}
        """By the id of their trace, which verifiers sends along."""
        self._url: str | None = None

    async def url(self) -> str:
        if self._url is None:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_post("/chat/completions", self._chat)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return self._url

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("tools"):
            return web.json_response({"error": {"message": "asyncrl's policy takes no tools"}}, status=400)
        episode = self.episodes[request.headers[SESSION_ID_HEADER]]
        messages = [{"role": one["role"], "content": _text(one.get("content"))} for one in body["messages"]]
        said = {"role": "assistant", "content": await episode.complete(messages)}
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        return web.json_response(
            {"id": "asyncrl", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}
        )


_endpoint = cache(Endpoint)


def _text(content: Any) -> str:
    """Of a message's content: text, or a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


@cache
def _loaded(taskset: str, num_tasks: int | None, env: str) -> tuple[Any, list[Any]]:
    """The environment and its tasks, once in a process."""
    if is_file_name(taskset):
        taskset = import_file("environment.name", taskset, Path(taskset)).__name__
    sys.modules.setdefault(CHAT, verifiers_chat)  # verifiers looks harnesses up as modules without a dot
    config = json.loads(env)
    config["taskset"] = {**config.get("taskset", {}), "id": taskset}
    config = resolve_env_config(config)
    for name, agent in agent_config_fields(config).items():
        changes = {"runtime": agent.runtime if "runtime" in agent.model_fields_set else vf.SubprocessConfig()}
        if agent.harness is None and default_harness_id(taskset) == "bash":
            changes["harness"] = verifiers_chat.ChatConfig(id=CHAT)
        setattr(config, name, agent.model_copy(update=changes))
    environment = load_environment(config)
    if num_tasks is None and not environment.taskset.bounded:
        raise ValueError("the taskset has no end; say how many with environment.args.num_tasks")
    return environment, list(itertools.islice(environment.taskset, num_tasks))


@cache
def _serving(environment: Any) -> asyncio.Task[Any]:
    """What the environment's rollouts share, up for as long as this process: the context, which must not be lost."""

    async def enter() -> Any:
        serving = environment.serving()
        await serving.__aenter__()
        return serving

    return asyncio.create_task(enter())
