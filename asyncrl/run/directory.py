"""The folder of a run: which file is where. Only the user can read it.

runs/NAME/
  config.yaml               resolved
  hardware.json             what it runs on
  prompts_*.parquet         tokenized prompts
  ledger.sqlite             every prompt's life, and the groups that no checkpoint contains yet (`ledger/store.py`)
  metrics.jsonl, tensorboard/
  checkpoints/step_*/
  logs/ROLE.log
  rendezvous/               files in which process groups meet
  lock                      held while any process of the run lives
  launcher.lock             held while its launcher lives
  control.json              while the run is live: where its launcher listens
  diagnosis/TIME/           of a run that could not go on
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from asyncrl.config.load import to_yaml
from asyncrl.config.paths import with_absolute_paths
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError

LOG_TAIL_LINES = 20

PROCESS_LINE = "is process"
"""In a role's log, where a new life of it begins."""
_ERROR = re.compile(r"(?:^|[\s\])])((?:\w+\.)*[A-Z]\w*(?:Error|Exception): \S.*)$")


def create(config: Config, config_name: str) -> Path:
    """A new run directory with the resolved configuration.

    Args:
        config_name: names the run when run.name is null.

    Raises:
        ConfigError: the directory exists or cannot be made.
    """
    name = config.run.name or f"{config_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(config.run.dir) / name
    partial = path.with_name(f".{name}.partial-{os.getpid()}")
    try:
        if path.exists():
            raise ConfigError(
                f"run directory {path} exists; choose another --run-dir or run.name, or go on with it: --resume {path}"
            )
        partial.mkdir(parents=True, mode=0o700)
        (partial / "logs").mkdir()
        save_config(partial, config)
        partial.rename(path)  # so that whatever has the name is a run, wherever the launcher is killed
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConfigError(f"run.dir={config.run.dir}: cannot make {path}: {error.strerror}") from error
    return path.resolve()


def keep_private() -> None:
    """What this process and its children make from here on, files and Unix sockets, is the user's alone."""
    os.umask(0o077)


def require_own(run_dir: Path) -> None:
    """Refuses a run directory that somebody else could have filled: its checkpoints and settings would be theirs.

    Raises:
        ConfigError: another user owns it, or others may write to it.
    """
    status = run_dir.stat()
    if status.st_uid != os.getuid():
        raise ConfigError(f"{run_dir} belongs to another user (uid {status.st_uid}); use a run directory of your own")
    if status.st_mode & 0o022:
        raise ConfigError(f"{run_dir}: others may write to it; look what is in it, then chmod go-w {run_dir}")


def save_config(run_dir: Path, config: Config) -> None:
    """With whole paths, so that the run can be resumed and exported from any folder."""
    (run_dir / "config.yaml").write_text(to_yaml(with_absolute_paths(config)))


def train_file(run_dir: Path) -> Path:
    return run_dir / "prompts_train.parquet"


def eval_file(run_dir: Path) -> Path:
    return run_dir / "prompts_eval.parquet"


def judge_file(run_dir: Path) -> Path:
    """What a judge has said and cost."""
    return run_dir / "judge.sqlite"


def ledger_file(run_dir: Path) -> Path:
    return run_dir / "ledger.sqlite"


def rendezvous_dir(run_dir: Path) -> Path:
    return run_dir / "rendezvous"


def lock_file(run_dir: Path) -> Path:
    return run_dir / "lock"


def log_file(run_dir: Path, role: str) -> Path:
    return run_dir / "logs" / f"{role}.log"


def log_tail(run_dir: Path, role: str) -> str:
    """The last lines a role wrote; says so when its log is not on this machine."""
    path = log_file(run_dir, role)
    if not path.is_file():
        return f"(no {path} on this machine)"
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])


def first_error(run_dir: Path, role: str) -> str | None:
    """The first error in the log of a role's latest life, by its last line; what follows it is often a consequence.

    So it is for vLLM, whose engine core fails first, in a process of its own, and then the process that waits for it.
    """
    path = log_file(run_dir, role)
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    begins = max((number for number, line in enumerate(lines) if PROCESS_LINE in line), default=0)
    matches = (_ERROR.search(line) for line in lines[begins:])
    return next((match[1] for match in matches if match), None)
