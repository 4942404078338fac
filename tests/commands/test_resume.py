"""From where a run goes on, and when that is refused. None of this starts a role."""

import fcntl
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from asyncrl import cli
from asyncrl.commands.resume import check_changes, find_checkpoint
from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError, DataError
from asyncrl.run import directory as run_dirs
from asyncrl.run.lock import claim, lock
from asyncrl.run.trainer_state import TrainerState


@pytest.fixture(name="run_dir")
def new_run(tmp_path, monkeypatch):
    """As it is right after its configuration was written."""
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.model.path, config.data.train, config.data.eval, config.run.name = "tiny", "rows.jsonl", None, "first"
    Path("rows.jsonl").write_text("{}")
    return run_dirs.create(config, "config")


def test_a_run_that_was_killed_while_it_started_goes_on_from_its_beginning(run_dir):
    assert find_checkpoint(run_dir) == (None, TrainerState())


def test_a_run_that_made_steps_and_has_no_ledger_does_not_go_on(run_dir):
    (run_dir / "metrics.jsonl").write_text('{"step": 3}\n')
    with pytest.raises(
        DataError, match=r"ledger\.sqlite does not exist: what became of the run's prompts is not known"
    ):
        find_checkpoint(run_dir)


def test_a_relative_and_a_whole_path_of_the_same_file_are_no_change(run_dir):
    config = Config()
    config.model.path, config.data.train, config.data.eval = "tiny", str(Path("rows.jsonl").absolute()), None
    check_changes(run_dir, config)
    assert load(run_dir / "config.yaml").data.train == config.data.train  # whole, so that any folder will do to resume
    config.data.train = "other.jsonl"
    with pytest.raises(ConfigError, match=r"data\.train"):
        check_changes(run_dir, config)


def test_a_run_has_one_launcher_at_a_time(run_dir):
    with claim(run_dir), pytest.raises(ConfigError, match="the run is live: another `asyncrl launch` has it"):
        claim(run_dir).__enter__()
    with claim(run_dir), lock(run_dir, 0.0, Console()):
        pass


def test_roles_that_are_about_to_end_are_waited_for(run_dir):
    role = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(role, fcntl.LOCK_SH)
    with claim(run_dir), pytest.raises(ConfigError, match="the run is live; stop it first"):
        lock(run_dir, 0.3, Console()).__enter__()


HOLDER = """
import sys, time
from pathlib import Path
from asyncrl.run.lock import claim
with claim(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_resuming_a_live_run_is_refused_before_the_data_is_read(run_dir, capsys):
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLDER), str(run_dir)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"claimed\n"
        assert cli.main(["launch", "--resume", str(run_dir)]) == cli.EXIT_BAD_INPUT
    finally:
        holder.kill()
        holder.wait()
    out, err = capsys.readouterr()
    assert "the run is live" in err
    assert "reading the data" not in out


@pytest.mark.parametrize("other", ["--resume", "--run-dir"])
def test_resume_or_start_names_the_directory_alone(run_dir, capsys, other):
    assert cli.main(["launch", "--resume-or-start", str(run_dir), other, "x"]) == cli.EXIT_BAD_INPUT
    assert "--resume-or-start names the run's directory" in capsys.readouterr().err
