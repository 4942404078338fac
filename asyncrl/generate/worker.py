"""The generator process: takes leases, returns scored groups, takes new weights in flight.

Consumes   LeaseGrants from replay; publish commands from learner rank 0.
Produces   GroupDone or LeaseFailed for every lease, repeated after a restart of replay until it is acknowledged;
           CompletionDone for what has ended of a group that has not; Done or Failed for every publish command.
Waits for  the first publish (the learner), then leases (replay grants them as admission permits). Neither wait has a
           deadline here. The learner's deadlines and the launcher end a run that stands still.
Unblocked  by replay (leases) and the learner (publishes).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import zmq
import zmq.asyncio

from asyncrl.config.engines import engine_label, engine_labels, engine_of
from asyncrl.config.schema import Config
from asyncrl.errors import RunError, WireError
from asyncrl.generate.engines.base import Engine
from asyncrl.generate.finished_completions import Finished, finished_before
from asyncrl.generate.publish_server import PublishServer
from asyncrl.generate.rollout import RollOut
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.rollouts import CompletionDone, GroupDone, Hello, LeaseFailed, LeaseGrant, Serving
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import Handshakes
from asyncrl.transport.wire import Frame, decode, encode, group_to_wire
from asyncrl.types import row_name

log = logging.getLogger(__name__)

STATS_INTERVAL_S = 1.0
RECONNECT_POLL_S = 0.1
HAND_IN_INTERVAL_S = 1.0
"""What has ended by itself is handed to replay this often: short groups cost no message, long ones lose little."""


class GeneratorWorker:
    """Runs leases as tasks on one event loop.

    Args:
        replay: DEALER to the replay server.
        handshakes: of `replay`.
        publish_server: already bound; its endpoint goes out with Hello.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        roll_out: RollOut,
        replay: zmq.asyncio.Socket,
        handshakes: Handshakes,
        publish_server: PublishServer,
        link: ControlLink,
    ) -> None:
        self._config = config
        self._engine = engine
        self._roll_out = roll_out
        self._replay = replay
        self._publish_server = publish_server
        self._utilization = publish_server.utilization
        self._link = link
        self._handshakes = handshakes
        self._control_endpoint = ""
        mixed = engine_labels(config.generator)
        self._engine_label = engine_label(engine_of(config.generator, link.name)) if mixed else ""
        self._held: set[int] = set()
        """Leases whose answer replay has not acknowledged."""
        self._unacknowledged: dict[int, list[Frame]] = {}
        """Answers, by lease."""
        self._finished: dict[int, Finished] = {}
        """What has ended of the training leases in hand."""

    async def run(self, control_endpoint: str) -> None:
        """Until the launcher says stop. The first task that fails ends the process with its error."""
        self._control_endpoint = control_endpoint
        await self._say_hello()
        self._link.ready()
        self._link.phase("waiting for weights")
        loops = [
            self._publish_server.run(),
            self._publish_server.count_refused(),
            self._receive(),
            self._report(),
            self._reconnect(),
            self._hand_in(),
            self._until_stopped(),
        ]
        tasks = [asyncio.create_task(loop) for loop in loops]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)
        for task in done:
            task.result()

    async def _say_hello(self) -> None:
        config, serves = self._config.generator, self._publish_server.served.is_set()
        hello = Hello(
            self._control_endpoint, config.tensor_parallel, config.max_groups_in_flight, serves, sorted(self._held)
        )
        await self._replay.send_multipart(encode(hello))

    async def _reconnect(self) -> None:
        """After a reconnection: tells replay which leases this generator holds, and repeats its answers."""
        while True:
            if self._handshakes.reconnected():
                log.warning("connected to replay anew; %d answers go again", len(self._unacknowledged))
                await self._say_hello()
                for finished in self._finished.values():
                    finished.replay_is_new()
                for parts in list(self._unacknowledged.values()):
                    await self._replay.send_multipart(parts)
            await asyncio.sleep(RECONNECT_POLL_S)

    async def _hand_in(self) -> None:
        while True:
            await asyncio.sleep(HAND_IN_INTERVAL_S)
            for lease_id, finished in list(self._finished.items()):
                for position, group in finished.take_unsent():
                    header, frames = group_to_wire(group)
                    parts = encode(CompletionDone(lease_id, position, header), frames)
                    await self._replay.send_multipart(parts, copy=False)

    async def _receive(self) -> None:
        """Runs each lease as a task. The first that fails (a dead engine, say) ends the generator with its error."""
        try:
            async with asyncio.TaskGroup() as leases:
                while True:
                    message, frames = decode(await self._replay.recv_multipart())
                    self._take(message, frames, leases)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _take(self, message: AnyMessage, frames: list[Frame], leases: asyncio.TaskGroup) -> None:
        match message:
            case LeaseGrant():
                self._held.add(message.lease_id)
                leases.create_task(self._answer(message, finished_before(message, frames)))
            case Ack():
                self._held.discard(message.ref)
                self._unacknowledged.pop(message.ref, None)
            case _:
                raise WireError(f"{type(message).__name__} from replay is not for a generator")

    async def _answer(self, grant: LeaseGrant, finished: Finished) -> None:
        num_tokens = 0
        if grant.kind == "train":
            self._finished[grant.lease_id] = finished
        self._utilization.lease_begins()
        try:
            async with asyncio.timeout(grant.timeout_s):
                group, unscored = await self._roll_out(grant, finished)
            group = replace(group, engine=self._engine_label)
            num_tokens = int(group.sampled.sum())
        except TimeoutError:
            await self._fail(grant, f"no group within {grant.timeout_s:.0f} s (replay.lease_timeout_s)")
            return
        except RunError as error:
            await self._fail(grant, str(error))
            return
        finally:
            self._finished.pop(grant.lease_id, None)
            self._utilization.lease_ends(num_tokens)
        if unscored:
            self._link.note(
                f"{row_name(grant.row, grant.data_set)}: {len(unscored)} of {group.size} completions without a reward: "
                f"{unscored[0]}"
            )
        header, frames = group_to_wire(group)
        await self._send(grant.lease_id, encode(GroupDone(grant.lease_id, header), frames))
        self._link.progress()

    async def _fail(self, grant: LeaseGrant, reason: str) -> None:
        await self._send(grant.lease_id, encode(LeaseFailed(grant.lease_id, reason)))

    async def _send(self, lease_id: int, answer: list[Frame]) -> None:
        self._unacknowledged[lease_id] = answer
        await self._replay.send_multipart(answer, copy=False)

    async def _report(self) -> None:
        """From the first version on: opens the generator to leases, and tells the launcher how the last interval went.

        `generator/*` are totals since that version, see Utilization.
        """
        await self._publish_server.served.wait()
        await self._replay.send_multipart(encode(Serving()))
        before = self._utilization.totals
        while True:
            await asyncio.sleep(STATS_INTERVAL_S)
            now = self._utilization.totals
            elapsed_s = now.elapsed_s - before.elapsed_s
            working_s = now.busy_s + now.paused_s - before.busy_s - before.paused_s
            self._link.metrics(
                {
                    "tokens_per_s": (now.num_tokens - before.num_tokens) / elapsed_s,
                    "idle": max(0.0, 1.0 - working_s / elapsed_s),
                    "version": float(self._publish_server.version),
                    "generator/tokens_total": float(now.num_tokens),
                    "generator/busy_total_s": now.busy_s,
                    "generator/paused_total_s": now.paused_s,
                    "generator/elapsed_total_s": now.elapsed_s,
                }
            )
            before = now
            num_leases = self._utilization.num_leases
            self._link.phase(f"generating, {num_leases} prompts" if num_leases else "idle: no leases")

    async def _until_stopped(self) -> None:
        while not self._link.stopping.is_set():
            if self._engine.dead:
                raise RunError("the inference engine died; what it wrote last stands above")
            await asyncio.sleep(0.1)
