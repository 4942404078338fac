"""ControlLink and ControlServer on real sockets."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import zmq

from asyncrl.supervise.diagnosis import write_diagnosis
from asyncrl.transport import control_link as control
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.control_server import ControlServer
from asyncrl.transport.messages.rollouts import Hello
from asyncrl.transport.messages.supervision import Alive, EvalRow, Note, Status, StepRow
from asyncrl.transport.sockets import Keys, Network, bind
from asyncrl.transport.wire import encode
from tests.support.wire import QUIET_MS, peer

NEVER_S = 600.0
PATIENCE_S = 20.0


@pytest.fixture
def server() -> Iterator[ControlServer]:
    launcher = ControlServer(Network(), ["generator-0", "learner-0"])
    yield launcher
    launcher.close()


@contextmanager
def link_to(
    endpoint: str, heartbeat_timeout_s: float = NEVER_S, stop_timeout_s: float = NEVER_S
) -> Iterator[ControlLink]:
    link = ControlLink("generator-0", Network(), endpoint, heartbeat_timeout_s, stop_timeout_s)
    try:
        yield link
    finally:
        link.close()


def receive_until(server: ControlServer, condition: Callable[[], bool]) -> list:
    reports: list = []
    for _ in range(200):
        if condition():
            return reports
        reports += server.receive(100)
    raise AssertionError("it never came")


def test_a_launcher_that_has_keys_hears_nobody_without_them_and_says_so(caplog):
    keys = Keys.generate()
    launcher = ControlServer(Network(keys=keys), ["generator-0"])
    strangers = [Network(), Network(keys=Keys.generate())]
    try:
        for network in strangers:
            with peer("generator-0", launcher.endpoint, network) as stranger:
                stranger.send(Status("up", True, {}, 0))
                assert stranger.hears_nothing()
        assert receive_until(launcher, lambda: "connections from peers without the run's keys" in caplog.text) == []
        assert launcher.roles["generator-0"].last_seen_s is None
        with peer("generator-0", launcher.endpoint, Network(keys=keys)) as role:
            role.send(Status("up", True, {}, 0))
            receive_until(launcher, lambda: launcher.roles["generator-0"].is_ready)
    finally:
        launcher.close()


def test_a_role_is_heard_of_with_its_phase_its_figures_and_whether_it_is_up(server):
    state = server.roles["generator-0"]
    assert state.last_seen_s is None
    with link_to(server.endpoint) as link:
        receive_until(server, lambda: state.last_seen_s is not None)
        assert not state.is_ready
        link.ready()
        link.metrics({"idle": 0.5})
        link.phase("generating")
        receive_until(server, lambda: state.phase == "generating")
        assert (state.is_ready, state.metrics) == (True, {"idle": 0.5})
    assert server.roles["learner-0"].last_seen_s is None


def test_rows_and_notes_arrive_in_order_with_their_sender_even_when_the_role_ends_at_once(server):
    sent = [StepRow(1, {"loss": 0.5, "sample": "text", "histogram": [1.0, 2.0]}), Note("careful"), EvalRow(1, {})]
    with link_to(server.endpoint) as link:
        for message in sent:
            link.send(message)
    reports: list = []
    while len(reports) < 3:
        reports += server.receive(1000)
    assert reports == [("generator-0", message) for message in sent]


def test_a_finished_piece_of_work_and_a_row_are_progress_and_a_heartbeat_is_not(server):
    state = server.roles["generator-0"]
    with link_to(server.endpoint) as link:
        link.ready()
        receive_until(server, lambda: state.is_ready)
        came_up_s = state.last_progress_s
        link.phase("thinking")
        receive_until(server, lambda: state.phase == "thinking")
        assert state.last_progress_s == came_up_s
        link.progress()
        receive_until(server, lambda: state.num_done == 1)
        assert state.last_progress_s > came_up_s
        done_s = state.last_progress_s
        link.send(StepRow(1, {}))
        receive_until(server, lambda: state.last_progress_s > done_s)
    texts = [event.split(" ", 1)[1] for event in server.events]
    assert texts == ["generator-0: starting", "generator-0: thinking", "generator-0: step 1"]


def test_a_diagnosis_holds_the_stacks_of_a_role_whose_main_thread_is_stuck_and_what_came_last(server, tmp_path):
    with link_to(server.endpoint) as link:
        link.metrics({"queue/depth": 3.0})
        receive_until(server, lambda: "queue/depth" in server.roles["generator-0"].metrics)
        folder = write_diagnosis(tmp_path, "it hangs", server, ["generator-0"])  # this thread answers to nobody
    assert "test_a_diagnosis_holds" in (folder / "generator-0.stacks.txt").read_text()
    assert not (folder / "learner-0.stacks.txt").exists()
    state = json.loads((folder / "state.json").read_text())
    assert state["failure"] == "it hangs"
    assert state["roles"]["generator-0"]["metrics"] == {"queue/depth": 3.0}
    assert state["roles"]["learner-0"]["silent_for_s"] is None
    assert state["events"][0].endswith("generator-0: starting")


HOLDS_THE_LOCK = """
import re, sys, time
from asyncrl.transport.control_link import ControlLink
from asyncrl.transport.sockets import Network
link = ControlLink("generator-0", Network(), sys.argv[1], 2.0, 600.0)
link.ready()
time.sleep(1.5)
def stuck_in_c():
    re.match("(a+)+b", "a" * 60)  # years, without giving the interpreter's lock away
stuck_in_c()
"""


def test_a_role_stuck_in_c_with_the_interpreters_lock_writes_its_stacks_to_its_log(server, tmp_path):
    log = tmp_path / "generator-0.log"
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-c", HOLDS_THE_LOCK, server.endpoint], stderr=stderr)
        try:
            receive_until(server, lambda: "in stuck_in_c" in log.read_text())
        finally:
            process.kill()
            process.wait()


def test_a_phase_is_told_when_it_changes_and_not_again():
    context: zmq.Context = zmq.Context.instance()
    socket, endpoint = bind(context, Network())
    with link_to(endpoint) as link:
        for _ in range(1000):
            link.phase("waiting for prompt 7")
    num_messages = 0
    while socket.poll(QUIET_MS):
        socket.recv_multipart()
        num_messages += 1
    assert 0 < num_messages < 100
    socket.close(0)


def test_stop_reaches_every_role(server):
    with link_to(server.endpoint) as link:
        receive_until(server, lambda: server.roles["generator-0"].last_seen_s is not None)
        server.stop_all("the run is complete")
        assert link.stopping.wait(PATIENCE_S)
        assert link.stop_reason == "the run is complete"


def test_a_role_that_comes_up_after_stop_hears_it_with_its_first_heartbeat(server):
    server.stop_all("Ctrl-C")
    with link_to(server.endpoint) as link:
        receive_until(server, link.stopping.is_set)
        assert link.stop_reason == "Ctrl-C"


def test_a_silent_launcher_makes_the_role_stop():
    context: zmq.Context = zmq.Context.instance()
    socket, endpoint = bind(context, Network())
    with link_to(endpoint, heartbeat_timeout_s=0.2) as link:
        assert link.stopping.wait(PATIENCE_S)
        assert "the launcher was silent" in link.stop_reason
    socket.close(0)


def test_a_launcher_that_answers_keeps_the_role_alive(monkeypatch):
    monkeypatch.setattr(control, "BEAT_INTERVAL_S", 0.05)
    socket, endpoint = bind(zmq.Context.instance(), Network())
    with link_to(endpoint, heartbeat_timeout_s=1.5) as link:
        for _ in range(40):  # two seconds
            identity, *_ = socket.recv_multipart()
            socket.send_multipart([identity, *encode(Alive())])
        assert not link.stopping.is_set()
    socket.close(0)


def test_a_stop_that_takes_too_long_ends_the_process(server, monkeypatch):
    ended = control.threading.Event()
    monkeypatch.setattr(control.os, "_exit", lambda code: ended.set() if code == control.ORPHAN_EXIT_CODE else None)
    with link_to(server.endpoint, stop_timeout_s=0.1) as link:
        receive_until(server, lambda: server.roles["generator-0"].last_seen_s is not None)
        server.stop_all("Ctrl-C")
        assert link.stopping.wait(PATIENCE_S)
        assert ended.wait(PATIENCE_S)


def test_a_role_that_ends_in_time_is_not_ended_by_force(server):
    with link_to(server.endpoint, stop_timeout_s=NEVER_S) as link:
        receive_until(server, lambda: server.roles["generator-0"].last_seen_s is not None)
        server.stop_all("Ctrl-C")
        assert link.stopping.wait(PATIENCE_S)
        link.close()
        link._ending.join(PATIENCE_S)
        assert not link._ending.is_alive()


def test_a_malformed_answer_does_not_end_the_link():
    context: zmq.Context = zmq.Context.instance()
    socket, endpoint = bind(context, Network())
    with link_to(endpoint) as link:
        identity, *_ = socket.recv_multipart()
        socket.send_multipart([identity, b"ARL\x01\xc1"])
        socket.send_multipart([identity, *encode(Hello("tcp://x", 1, 1))])
        link.send(Note("still here"))
        while b"still here" not in socket.recv_multipart()[1]:
            pass
    socket.close(0)


def test_strangers_malformed_messages_and_other_roles_messages_do_not_disturb_the_launcher(server):
    with peer("stranger", server.endpoint) as stranger, peer("learner-0", server.endpoint) as learner:
        stranger.send(Status("who?", True, {}, 0))
        stranger.send_raw(b"garbage")
        learner.send(Hello("tcp://x", 1, 1))
        learner.send_raw(b"ARL\x01\xc1")
        learner.send(Status("loading", False, {}, 0))
        receive_until(server, lambda: server.roles["learner-0"].phase == "loading")
        assert set(server.roles) == {"generator-0", "learner-0"}
        assert stranger.hears_nothing()
