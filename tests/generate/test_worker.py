"""GeneratorWorker and PublishServer: a scripted engine, real reward processes, real sockets."""

import math

import numpy as np
import pytest

from asyncrl.errors import RunError, WireError
from asyncrl.transport.messages.base import Ack
from asyncrl.transport.messages.publishing import Done, Failed, JoinGroup, Stage, Switch
from asyncrl.transport.messages.rollouts import CompletionDone, GroupDone, Hello, LeaseFailed, Serving
from asyncrl.transport.messages.supervision import Note
from asyncrl.transport.wire import encode, group_from_wire
from tests.support.generator import DIES, HANGING_TEXT, HANGS, EngineDiedError, ScriptedEngine, make_grant, run, working


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
            await bench.replay_is_another(num_unacknowledged=1)
            hello, _ = await bench.receive()
            assert (hello.held, hello.serves) == ([second.lease_id, 3], False)
            again, _ = await bench.receive()
            assert again == second

    run(scenario())


def test_what_has_ended_of_a_group_that_has_not_is_handed_in_once_and_again_to_a_new_replay_process(pool):
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.texts[1] = ["abc", HANGING_TEXT]
        async with working(engine, pool) as bench:
            await bench.grant(make_grant())
            done, frames = await bench.receive_any()
            assert isinstance(done, CompletionDone)
            assert (done.lease_id, done.position) == (3, 0)
            assert group_from_wire(done.header, frames).sample_text == "abc"
            await bench.replay_is_another(num_unacknowledged=0)
            hello, _ = await bench.receive()
            assert hello.held == [3]
            again, _ = await bench.receive_any()
            assert (again.lease_id, again.position, again.header.lengths) == (3, 0, [3])

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
            assert engine.num_cancelled == 2  # its two completions
        assert engine.num_cancelled == 4  # the stop cancels what is in flight

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
