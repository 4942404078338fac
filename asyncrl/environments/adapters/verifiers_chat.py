"""A harness for verifiers that chats in this process; its own `null` starts a Python program for each turn."""

from __future__ import annotations

from functools import cache
from typing import Any

import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire

__all__ = ["Chat"]


class ChatConfig(vf.HarnessConfig):
    """As any harness's."""


class Chat(vf.Harness[ChatConfig]):
    """One completion a turn, on the conversation so far. No tools."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Asks the model at `endpoint`, which keeps what is said."""
        system, prompt = self.resolve_prompt(data)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or ()]
        answer = await _client().post(
            f"{endpoint}/chat/completions",
            json={"model": ctx.model, "messages": messages},
            headers={"authorization": f"Bearer {secret}"},
        )
        if answer.is_error:
            return vf.ProgramResult(1, "", answer.text)
        return vf.ProgramResult(0, "", "")


@cache
def _client() -> httpx.AsyncClient:
    """One for the process: a client takes longer to make than an episode to play. The policy's deadlines hold."""
    return httpx.AsyncClient(timeout=None, trust_env=False, limits=httpx.Limits(max_connections=None))
