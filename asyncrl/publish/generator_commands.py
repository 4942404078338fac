"""Learner rank 0's commands to every generator at once, each with a deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import zmq

from asyncrl.errors import DeadlineError, NotWholeError, PublishError
from asyncrl.transport.messages.learning import Member
from asyncrl.transport.messages.publishing import Done, Failed, JoinGroup, LeaveGroup, Stage, Switch
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.sockets import Network, connect, is_refused
from asyncrl.transport.wire import decode, encode

LEAVE_TIMEOUT_S = 2.0
"""For an answer of a generator that has nothing to wait for."""


class GeneratorCommands:
    """One DEALER a generator.

    Args:
        name: of this end of the sockets; answers to another name never come here.
        members: the generators, in the order of their ranks in the publish group; all of one tensor_parallel.
        timeout_s: deadline of each command.
    """

    def __init__(self, name: str, network: Network, members: list[Member], timeout_s: float) -> None:
        context: zmq.Context = zmq.Context.instance()
        self._members = members
        self._timeout_s = timeout_s
        self._sockets = {member.name: connect(context, network, member.control_endpoint, name) for member in members}
        self._ends = {name: socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) for name, socket in self._sockets.items()}
        """Readable once a generator has closed its connection, which its death does."""
        self._dead = {member.name for member in members if is_refused(member.control_endpoint)}
        """Before there was a connection. A monitor of failed attempts is no way to know it: they go on when this client
        has been dropped, and then block ZeroMQ's thread, which serves every socket of the process."""

    @property
    def tensor_parallel(self) -> int:
        return self._members[0].tensor_parallel

    @property
    def workers(self) -> list[str]:
        """Who is publish rank 1, 2, …: the workers of the first generator, then those of the next."""
        if self.tensor_parallel == 1:
            return [member.name for member in self._members]
        parts = range(self.tensor_parallel)
        return [f"{member.name} (worker {part})" for member in self._members for part in parts]

    def join(self, init_info: dict[str, Any]) -> None:
        """Each generator's first worker has the rank after the last one of the generator before it."""
        offsets = range(1, 1 + len(self.workers), self.tensor_parallel)
        self._command(
            {
                member.name: JoinGroup({**init_info, "rank_offset": offset})
                for member, offset in zip(self._members, offsets, strict=True)
            },
            "join the publish group",
        )

    def stage(self) -> None:
        self._command_all(Stage(), "get ready for new weights")

    def switch(self, version: int, update_info: dict[str, Any], recompute_kv: bool) -> float:
        """Every generator serves `version` from here on. Returns the longest stall, in seconds.

        Raises:
            NotWholeError: a generator could not; it stands still until a whole version comes.
            PublishError: one did not answer.
        """
        done = self._command_all(Switch(version, update_info, recompute_kv), f"switch to version {version}")
        return max(answer.stall_s for answer in done.values())

    @contextmanager
    def switching(self, version: int, update_info: dict[str, Any], recompute_kv: bool) -> Iterator[Future[float]]:
        """`switch` beside the caller's half of a rendezvous; its outcome is in the future when the block has ended."""
        executor = ThreadPoolExecutor(max_workers=1)
        try:
            future = executor.submit(self.switch, version, update_info, recompute_kv)
            yield future
            future.result(self._timeout_s)
        except NotWholeError:
            wait([future], self._timeout_s)  # its answers are taken, so that the next command gets its own
            raise
        finally:
            executor.shutdown(wait=False)

    def leave(self) -> list[str]:
        """Frees every generator from a broken group; the first command of a new client. Returns who did not answer."""
        for name in self._sockets:
            self._send(name, LeaveGroup())
        deadline_s = time.monotonic() + min(LEAVE_TIMEOUT_S, self._timeout_s)
        return [name for name in self._sockets if not self._poll(name, deadline_s)]

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.disable_monitor()
            socket.close(linger=0)  # a command that a dead generator did not take is for nobody

    def _command_all(self, command: AnyMessage, what: str) -> dict[str, Done]:
        return self._command({member.name: command for member in self._members}, what)

    def _command(self, commands: dict[str, AnyMessage], what: str) -> dict[str, Done]:
        """Every answer is taken before the first failure is told, so that the next command gets its own."""
        for name, command in commands.items():
            self._send(name, command)
        deadline_s = time.monotonic() + self._timeout_s
        answers = {name: self._reply(name, deadline_s, what) for name in commands}
        for name, answer in answers.items():
            if isinstance(answer, Failed):
                kind = NotWholeError if isinstance(commands[name], Switch) else PublishError
                raise kind(f"{name} could not {what}: {answer.reason}")
        return {name: answer for name, answer in answers.items() if isinstance(answer, Done)}

    def _send(self, name: str, command: AnyMessage) -> None:
        try:
            self._sockets[name].send_multipart(encode(command))
        except DeadlineError:
            self._dead.add(name)  # another program has its port

    def _reply(self, name: str, deadline_s: float, what: str) -> Done | Failed:
        if not self._poll(name, deadline_s):
            if time.monotonic() < deadline_s:
                raise PublishError(f"{name} closed its connection when it was told to {what}; its process ended")
            raise PublishError(f"{name} did not {what} within {self._timeout_s:.0f} s (publish.timeout_s)")
        message, _ = decode(self._sockets[name].recv_multipart())
        if not isinstance(message, Done | Failed):
            raise PublishError(f"{name} answered {type(message).__name__} when told to {what}")
        return message

    def _poll(self, name: str, deadline_s: float) -> bool:
        """False: it did not answer by then, or closed or refused its connection before."""
        if name in self._dead:
            return False
        socket = self._sockets[name]
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._ends[name], zmq.POLLIN)
        return socket in dict(poller.poll(max(0, round(1000 * (deadline_s - time.monotonic())))))
