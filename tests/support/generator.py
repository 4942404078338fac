"""A scripted engine, and a generator's worker between a scripted replay and learner."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
import zmq
import zmq.asyncio

from asyncrl.config.schema import Config
from asyncrl.generate.engines.base import Sampling
from asyncrl.generate.publish_server import PublishServer
from asyncrl.generate.rollout import roll_out
from asyncrl.generate.worker import GeneratorWorker
from asyncrl.rewards.pool import RewardPool
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.rollouts import CompletionDone, Hello, LeaseGrant
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import Network, bind, connect, connect_watched
from asyncrl.transport.wire import Frame, decode, encode
from asyncrl.types import Completion
from tests.support.wire import PATIENCE_MS, bind_again

HANGS = -1
DIES = -2
HANGING_TEXT = "hangs"


class EngineDiedError(Exception):
    pass


class ScriptedEngine:
    """Answers a prompt with one completion per text of its script; `ScriptedEngine.texts[first prompt token]`."""

    def __init__(self) -> None:
        self.texts: dict[int, list[str]] = {}
        self.logprob = -0.5
        self.version = 0
        self.samplings: list[Sampling] = []
        self.calls: list[str] = []
        self.num_cancelled = 0
        self.dead = False
        self.tells_supports = True

    async def sample(self, request_id: str, prompt_token_ids: list[int], sampling: Sampling) -> list[Completion]:
        self.calls.append(request_id)
        self.samplings.append(sampling)
        if prompt_token_ids[0] == DIES:
            raise EngineDiedError("out of memory")
        if prompt_token_ids[0] == HANGS:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        texts = self.texts[prompt_token_ids[0]]
        if sampling.num_samples == 1:
            texts = texts[int(request_id.rpartition("-")[2]) :][:1]
        if texts == [HANGING_TEXT]:
            await asyncio.Event().wait()
        return [self._completion(text, sampling) for text in texts]

    def _completion(self, text: str, sampling: Sampling) -> Completion:
        """Of top-k it leaves two tokens: the sampled one and 99."""
        supports = np.asarray([(token, 99) for token in range(len(text))], np.int32).ravel()
        return Completion(
            token_ids=np.arange(len(text), dtype=np.int32),
            logprobs=np.full(len(text), self.logprob, np.float32),
            versions=np.full(len(text), self.version, np.int32),
            text=text,
            finish_reason="length" if len(text) > 4 else "stop",
            support_ids=supports if sampling.truncates and self.tells_supports else supports[:0],
            support_sizes=np.full(len(text) if sampling.truncates and self.tells_supports else 0, 2, np.int32),
        )

    async def pause(self, recompute_kv: bool) -> None:
        self.calls.append(f"pause {recompute_kv}")

    async def resume(self, version: int) -> None:
        self.version = version
        self.calls.append(f"resume {version}")

    async def join_group(self, init_info: dict[str, Any]) -> None:
        raise RuntimeError(f"cannot join {init_info['world_size']}")

    async def leave_group(self) -> None: ...

    async def stage(self) -> None:
        if self.dead:
            await asyncio.Event().wait()

    async def update(self, update_info: dict[str, Any]) -> None:
        self.calls.append(f"update {update_info}")
        if update_info.get("changed"):
            raise RuntimeError("does not hold what came")

    def shutdown(self) -> None: ...


def make_grant(first_token: int = 1, num_samples: int = 2, lease_id: int = 3, **changes: Any) -> LeaseGrant:
    arguments = {
        "lease_id": lease_id,
        "index": 7,
        "kind": "train",
        "row": 70,
        "token_ids": [first_token, 8],
        "text": "2 + 3 = ",
        "answer": "5",
        "num_samples": num_samples,
        "temperature": 0.7,
        "seed": 11,
        "timeout_s": 60.0,
    }
    return LeaseGrant(**(arguments | changes))


class Bench:
    """A worker with a scripted replay and learner around it."""

    def __init__(self, engine: ScriptedEngine, pool: RewardPool) -> None:
        context = zmq.asyncio.Context()
        self.context, self.network = context, Network()
        self.control = ControlServer(self.network, ["generator-0"])
        self.link = ControlLink("generator-0", self.network, self.control.endpoint, 600.0, 600.0)
        self.replay, endpoint = bind(context, self.network)
        self.replay_endpoint = endpoint
        self.dealer, self.handshakes = connect_watched(context, self.network, endpoint, "generator-0")
        publish_socket, self.publish_endpoint = bind(context, self.network)
        self.learner = connect(context, self.network, self.publish_endpoint, "learner-0-publish")
        self.sockets = [self.replay, self.dealer, publish_socket, self.learner]
        self.publish_server = PublishServer(publish_socket, engine, timeout_s=60)
        answer = partial(roll_out, engine=engine, scorer=pool, config=Config())
        self.worker = GeneratorWorker(
            Config(), engine, answer, self.dealer, self.handshakes, self.publish_server, self.link
        )
        self.running = asyncio.create_task(self.worker.run(self.publish_endpoint))

    async def receive(self) -> tuple[AnyMessage, list[Frame]]:
        """The next message; completions that are handed in by themselves are passed over."""
        while isinstance((received := await self.receive_any())[0], CompletionDone):
            pass
        return received

    async def receive_any(self) -> tuple[AnyMessage, list[Frame]]:
        assert await self.replay.poll(PATIENCE_MS), "the worker sent nothing"
        _, *parts = await self.replay.recv_multipart()
        return decode(parts)

    async def grant(self, grant: LeaseGrant | Ack | Hello) -> None:
        await self.replay.send_multipart([b"generator-0", *encode(grant)])

    async def command(self, message: AnyMessage) -> AnyMessage:
        await self.learner.send_multipart(encode(message))
        assert await self.learner.poll(PATIENCE_MS), "the publish server sent nothing"
        return decode(await self.learner.recv_multipart())[0]

    async def replay_is_another(self, num_unacknowledged: int) -> None:
        """Once only so many answers lack their Ack, the connection breaks, and comes about anew at the same address."""
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while len(self.worker._unacknowledged) > num_unacknowledged:
                await asyncio.sleep(0.01)
        self.replay.close(0)
        self.replay, _ = bind_again(self.context, self.network, int(self.replay_endpoint.rpartition(":")[2]))
        self.sockets.append(self.replay)

    async def ended(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.running), PATIENCE_MS / 1000)

    async def close(self) -> None:
        self.link.stopping.set()
        await asyncio.wait([self.running])
        self.link.close()
        self.control.close()
        self.handshakes.close()
        self.publish_server.close()
        for socket in self.sockets:
            socket.close(0)
        self.context.term()


@asynccontextmanager
async def working(engine: ScriptedEngine, pool: RewardPool) -> AsyncIterator[Bench]:
    bench = Bench(engine, pool)
    try:
        hello, _ = await bench.receive()
        assert hello == Hello(bench.publish_endpoint, 1, Config().generator.max_groups_in_flight)
        yield bench
    finally:
        await bench.close()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)
