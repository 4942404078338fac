import threading
from pathlib import Path

import pytest

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError, RunError
from asyncrl.run import directory as run_dirs
from asyncrl.run.full_disk import full_disk_is_named


def config_in(parent: Path, name: str | None = "first") -> Config:
    config = Config()
    config.model.path, config.data.train = "tiny", "arithmetic"
    config.run.dir, config.run.name = str(parent), name
    return config


def test_a_run_directory_holds_the_resolved_config_and_is_private(tmp_path):
    config = config_in(tmp_path / "runs")
    directory = run_dirs.create(config, "quickstart")
    assert directory == tmp_path / "runs" / "first"
    assert load(directory / "config.yaml") == config
    assert directory.stat().st_mode & 0o077 == 0
    assert (directory / "logs").is_dir()


def test_a_run_without_a_name_is_named_by_its_config_and_the_time(tmp_path):
    assert run_dirs.create(config_in(tmp_path, name=None), "quickstart").name.startswith("quickstart-20")


def test_an_existing_run_directory_is_left_alone_and_the_ways_on_are_named(tmp_path):
    directory = run_dirs.create(config_in(tmp_path), "quickstart")
    (directory / "config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"first exists; choose another --run-dir or run.name, .* --resume"):
        run_dirs.create(config_in(tmp_path), "quickstart")
    assert (directory / "config.yaml").read_text() == "mine"


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run.dir=.*file: cannot make .*file/first: Not a directory"):
        run_dirs.create(config_in(tmp_path / "file"), "quickstart")


def test_a_run_directory_has_its_name_only_with_its_configuration(tmp_path, monkeypatch):
    def killed(run_dir, config):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_dirs, "save_config", killed)
    with pytest.raises(KeyboardInterrupt):
        run_dirs.create(config_in(tmp_path), "quickstart")
    assert not (tmp_path / "first").exists()


LOG = """\
INFO generator-0 is process 11
ValueError: of an earlier life
INFO generator-0 is process 12
(EngineCore pid=13) ERROR 11-25 10:00:00 [core.py:1] EngineCore failed to start.
(EngineCore pid=13) ERROR 11-25 10:00:00 [core.py:1] Traceback (most recent call last):
(EngineCore pid=13) ERROR 11-25 10:00:00 [core.py:1]     raise ValueError(f"head size {size}: unsupported")
(EngineCore pid=13) ERROR 11-25 10:00:00 [core.py:1] ValueError: head size 16 is not supported
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_first_error_of_a_log_is_the_cause_in_the_latest_life(tmp_path):
    path = run_dirs.log_file(tmp_path, "generator-0")
    path.parent.mkdir()
    path.write_text(LOG)
    assert run_dirs.first_error(tmp_path, "generator-0") == "ValueError: head size 16 is not supported"
    assert run_dirs.first_error(tmp_path, "learner-0") is None


def test_the_tail_of_a_log_is_its_last_lines_even_when_they_are_not_text(tmp_path):
    path = run_dirs.log_file(tmp_path, "replay")
    path.parent.mkdir()
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(100)) + b"\xff\xfe end")
    lines = run_dirs.log_tail(tmp_path, "replay").splitlines()
    assert len(lines) == run_dirs.LOG_TAIL_LINES
    assert lines[-2:] == ["line 99", "\ufffd\ufffd end"]


def test_a_log_on_another_machine_is_said_to_be_there(tmp_path):
    assert "replay.log on this machine" in run_dirs.log_tail(tmp_path, "replay")


def in_a_thread_and_here(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
    function()


@pytest.fixture
def failed_threads(monkeypatch):
    """What the threads raise that would print a traceback."""
    failures = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: failures.append(failure.exc_type))
    return failures


def test_a_full_disk_is_one_message_whichever_thread_met_it(tmp_path, failed_threads):
    def write():
        with Path("/dev/full").open("w") as file:
            file.write("x")

    with (
        pytest.raises(RunError, match=r"No space left on device; make room, then go on with it: --resume .*run"),
        full_disk_is_named(tmp_path / "run"),
    ):
        in_a_thread_and_here(write)
    assert failed_threads == []


def test_other_errors_of_threads_are_shown_and_other_errors_of_the_system_stay(tmp_path, failed_threads):
    with pytest.raises(FileNotFoundError), full_disk_is_named(tmp_path):
        in_a_thread_and_here((tmp_path / "absent").read_text)
    assert failed_threads == [FileNotFoundError]
