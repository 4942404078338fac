"""roll_out and GeneratorWorker: a scripted engine, real reward processes, real sockets."""

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.asyncio

from asyncrl.config.schema import Config, RewardTerm
from asyncrl.errors import RunError, WireError
from asyncrl.generate.engines.base import Sampling
from asyncrl.generate.publish_server import PublishServer
from asyncrl.generate.rollout import roll_out
from asyncrl.generate.worker import GeneratorWorker
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.worker import RewardFailure, Score
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.publishing import Done, Failed, JoinGroup, Stage, Switch
from asyncrl.transport.messages.rollouts import Ack, GroupDone, Hello, LeaseFailed, LeaseGrant, Serving
from asyncrl.transport.messages.schema import AnyMessage
from asyncrl.transport.messages.supervision import Note
from asyncrl.transport.sockets import Network, bind, connect, connect_watched
from asyncrl.transport.wire import Frame, decode, encode, group_from_wire
from asyncrl.types import Completion
from tests.support.wire import PATIENCE_MS

HANGS = -1
DIES = -2


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
        return [self._completion(text) for text in self.texts[prompt_token_ids[0]]]

    def _completion(self, text: str) -> Completion:
        return Completion(
            token_ids=np.arange(len(text), dtype=np.int32),
            logprobs=np.full(len(text), self.logprob, np.float32),
            versions=np.full(len(text), self.version, np.int32),
            text=text,
            finish_reason="length" if len(text) > 4 else "stop",
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


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    running = RewardPool([RewardTerm("tests.support.reward_faults:fault")], num_workers=1, time_limit_s=60.0)
    yield running
    running.close()


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


def run_roll_out(engine: ScriptedEngine, pool: RewardPool, grant: LeaseGrant, config: Config | None = None) -> Any:
    return asyncio.run(roll_out(grant, engine, pool, (config or Config()).generator))


# ── one lease ──


class Notes:
    """A scorer that notes what it is given."""

    async def score(self, *arguments: Any) -> list[Score | RewardFailure]:
        self.arguments = arguments
        return [
            Score(1.0, True, {"math": 1.0, "style": 0.5}),
            Score(0.0, False, {"math": 0.0, "style": 0.25}),
            RewardFailure("why"),
        ]


def test_rewards_see_the_columns_and_the_tokens_and_their_terms_come_back_as_means():
    engine, scorer = ScriptedEngine(), Notes()
    engine.texts[1] = ["abc", "a", "abcdef"]
    grant = make_grant(num_samples=3, columns='{"level": 3}')
    group, failures = run_roll_out(engine, scorer, grant)
    prompt, completions, answer, columns, tokens = scorer.arguments
    assert (prompt, answer, columns) == ("2 + 3 = ", "5", '{"level": 3}')
    assert [len(ids) for ids in tokens] == group.lengths.tolist()
    assert completions == ["abc", "a", "abcdef"]
    assert group.term_means == {"math": 0.5, "style": 0.375}
    assert failures == ["why"]


def test_a_group_holds_every_completion_in_order_with_its_reward(pool):
    engine = ScriptedEngine()
    engine.texts[1] = ["abc", "a", "abcdef"]  # the reward is the length
    group, failures = run_roll_out(engine, pool, make_grant(num_samples=3))
    assert (group.index, group.row, group.prompt_token_ids.tolist()) == (7, 70, [1, 8])
    assert group.lengths.tolist() == [3, 1, 6]
    assert group.tokens.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 5]
    assert group.rewards.tolist() == [3, 1, 6]
    assert group.correct.all()
    assert group.truncated.tolist() == [False, False, True]
    assert group.sample_text == "2 + 3 = abc"
    assert failures == []


def test_a_completion_that_cannot_be_scored_has_a_nan_reward_and_says_why(pool):
    engine = ScriptedEngine()
    engine.texts[1] = ["raises", "abc"]
    group, failures = run_roll_out(engine, pool, make_grant())
    assert np.isnan(group.rewards).tolist() == [True, False]
    assert group.correct.tolist() == [False, True]
    assert len(failures) == 1
    assert failures[0].startswith("KeyError")


@pytest.mark.parametrize(("logprob"), [math.nan, math.inf, -math.inf])
def test_logprobs_that_are_not_finite_make_no_group(pool, logprob):
    engine = ScriptedEngine()
    engine.texts[1], engine.logprob = ["abc", "a"], logprob
    with pytest.raises(RunError, match=r"prompt 7 \(row 70\): completion 0 has logprobs that are not finite"):
        run_roll_out(engine, pool, make_grant())


@pytest.mark.parametrize(("texts", "reason"), [(["abc", ""], "completion 1 is empty"), (["abc"], "1 completions inst")])
def test_an_empty_or_missing_completion_makes_no_group(pool, texts, reason):
    engine = ScriptedEngine()
    engine.texts[1] = texts
    with pytest.raises(RunError, match=reason):
        run_roll_out(engine, pool, make_grant())


def test_training_samples_as_configured_and_an_evaluation_from_the_whole_distribution(pool):
    engine, config = ScriptedEngine(), Config()
    engine.texts[1] = ["a", "b"]
    config.generator.top_p, config.generator.top_k, config.generator.max_tokens = 0.9, 20, 64
    run_roll_out(engine, pool, make_grant(), config)
    run_roll_out(engine, pool, make_grant(kind="eval", lease_id=-3, temperature=0.0), config)
    config.generator.seeded_sampling = False
    run_roll_out(engine, pool, make_grant(), config)
    train, evaluation, unseeded = engine.samplings
    assert train == Sampling(2, temperature=0.7, top_p=0.9, top_k=20, max_tokens=64, seed=11)
    assert evaluation == Sampling(2, temperature=0.0, top_p=1.0, top_k=-1, max_tokens=64, seed=11)
    assert unseeded.seed is None
    assert engine.calls == ["train-3", "eval--3", "train-3"]


# ── the worker ──


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
        self.publish_server = PublishServer(publish_socket, engine)
        worker = GeneratorWorker(Config(), engine, pool, self.dealer, self.handshakes, self.publish_server, self.link)
        self.running = asyncio.create_task(worker.run(self.publish_endpoint))

    async def receive(self) -> tuple[AnyMessage, list[Frame]]:
        assert await self.replay.poll(PATIENCE_MS), "the worker sent nothing"
        _, *parts = await self.replay.recv_multipart()
        return decode(parts)

    async def grant(self, grant: LeaseGrant | Ack | Hello) -> None:
        await self.replay.send_multipart([b"generator-0", *encode(grant)])

    async def command(self, message: AnyMessage) -> AnyMessage:
        await self.learner.send_multipart(encode(message))
        assert await self.learner.poll(PATIENCE_MS), "the publish server sent nothing"
        return decode(await self.learner.recv_multipart())[0]

    async def replay_is_another(self) -> None:
        """The acknowledgement has arrived; then the connection breaks, and comes about anew at the same address."""
        await asyncio.sleep(0.2)
        self.replay.close(0)
        await asyncio.sleep(0.1)
        self.replay, _ = bind(self.context, self.network, int(self.replay_endpoint.rpartition(":")[2]))
        self.sockets.append(self.replay)

    async def ended(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.running), PATIENCE_MS / 1000)

    async def close(self) -> None:
        self.link.stopping.set()
        await asyncio.wait([self.running])
        self.link.close()
        self.control.close()
        self.handshakes.close()
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


def test_a_lease_comes_back_as_its_group_and_a_failed_reward_is_noted(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.texts[1] = ["abc", "returns NaN"]
        async with working(engine, pool) as bench:
            await bench.grant(make_grant())
            message, frames = await bench.receive()
            assert isinstance(message, GroupDone)
            assert message.lease_id == 3
            group = group_from_wire(message.header, frames)
            assert np.array_equal(group.rewards, [3, np.nan], equal_nan=True)
            await bench.grant(Ack(3))
            notes: list[Note] = []
            while not notes:
                notes += [report for _, report in bench.control.receive(100) if isinstance(report, Note)]
            assert notes[0].text.startswith("row 70: 1 of 2 completions without a reward")

    run(scenario())


def test_a_replay_process_that_is_new_hears_what_the_generator_has_and_gets_its_answers_again(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.texts[1] = ["a", "b"]
        async with working(engine, pool) as bench:
            await bench.grant(make_grant(lease_id=1))
            await bench.grant(make_grant(lease_id=2))
            await bench.grant(make_grant(HANGS, lease_id=3))
            first, _ = await bench.receive()
            second, _ = await bench.receive()
            await bench.grant(Ack(first.lease_id))
            await bench.replay_is_another()
            hello, _ = await bench.receive()
            assert (hello.held, hello.serves) == ([second.lease_id, 3], False)
            again, _ = await bench.receive()
            assert again == second

    run(scenario())


def test_leases_are_answered_as_they_finish_and_one_that_takes_too_long_fails_alone(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.texts[1] = ["a", "b"]
        async with working(engine, pool) as bench:
            await bench.grant(make_grant(HANGS, lease_id=1))
            await bench.grant(make_grant(HANGS, lease_id=2, timeout_s=0.2))
            await bench.grant(make_grant(lease_id=3))
            answers = {message.lease_id: message for message, _ in [await bench.receive() for _ in range(2)]}
            assert isinstance(answers[3], GroupDone)
            assert isinstance(answers[2], LeaseFailed)
            assert "replay.lease_timeout_s" in answers[2].reason
            assert engine.num_cancelled == 1
        assert engine.num_cancelled == 2  # the stop cancels what is in flight

    run(scenario())


def test_a_group_that_must_not_be_trained_on_is_a_failed_lease(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.texts[1], engine.logprob = ["a", "b"], math.nan
        async with working(engine, pool) as bench:
            await bench.grant(make_grant())
            message, _ = await bench.receive()
            assert isinstance(message, LeaseFailed)
            assert "not finite" in message.reason

    run(scenario())


def test_an_engine_that_dies_ends_the_generator_with_its_own_error(pool):
    async def scenario() -> None:
        async with working(ScriptedEngine(), pool) as bench:
            await bench.grant(make_grant(HANGS, lease_id=1))
            await bench.grant(make_grant(DIES, lease_id=2))
            with pytest.raises(EngineDiedError, match="out of memory"):
                await bench.ended()

    run(scenario())


def test_an_engine_that_dies_idle_or_in_a_publish_ends_the_generator_too(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        async with working(engine, pool) as bench:
            engine.dead = True
            await bench.learner.send_multipart(encode(Stage()))  # vLLM never answers this one
            with pytest.raises(RunError, match="the inference engine died"):
                await bench.ended()

    run(scenario())


def test_a_message_that_is_not_for_a_generator_ends_it_with_that_error(pool):
    async def scenario() -> None:
        async with working(ScriptedEngine(), pool) as bench:
            await bench.grant(Hello("tcp://x", 1, 1))
            with pytest.raises(WireError, match="Hello from replay is not for a generator"):
                await bench.ended()

    run(scenario())


def test_the_worker_ends_when_the_launcher_says_stop(pool):
    async def scenario() -> None:
        async with working(ScriptedEngine(), pool) as bench:
            bench.control.receive(2000)
            bench.control.stop_all("the run is complete")
            await bench.ended()

    run(scenario())


def test_a_switch_is_one_step_and_its_version_is_acknowledged(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        async with working(engine, pool) as bench:
            assert await bench.command(Stage()) == Done(-1)
            done = await bench.command(Switch(4, {"staged": True}, recompute_kv=True))
            assert isinstance(done, Done)
            assert done.version == 4
            assert engine.calls == ["pause True", "update {'staged': True}", "resume 4"]
            assert bench.publish_server.served.is_set()

    run(scenario())


def test_a_switch_that_fails_serves_nothing_until_one_succeeds(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        async with working(engine, pool) as bench:
            failed = await bench.command(Switch(4, {"changed": True}, recompute_kv=False))
            assert failed == Failed("RuntimeError: does not hold what came")
            assert engine.calls == ["pause False", "update {'changed': True}"]
            done = await bench.command(Switch(4, {}, recompute_kv=False))
            assert isinstance(done, Done)
            assert engine.calls[-1] == "resume 4"

    run(scenario())


def test_a_publish_command_that_fails_or_does_not_fit_is_answered_and_the_generator_goes_on(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.texts[1] = ["a", "b"]
        async with working(engine, pool) as bench:
            assert await bench.command(JoinGroup({"world_size": 3})) == Failed("RuntimeError: cannot join 3")
            refused = await bench.command(Ack(1))
            assert isinstance(refused, Failed)
            assert "is no publish command" in refused.reason
            await bench.learner.send_multipart([b"garbage"])
            assert isinstance(await bench.command(Switch(1, {}, recompute_kv=False)), Done)
            assert (await bench.receive())[0] == Serving()
            await bench.grant(make_grant())
            message, _ = await bench.receive()
            assert isinstance(message, GroupDone)

    run(scenario())
