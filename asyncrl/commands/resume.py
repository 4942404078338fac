"""Going on with a run: from which checkpoint, whether its ledger fits, which changes of its configuration may be."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from asyncrl.config.load import load
from asyncrl.config.paths import with_absolute_paths
from asyncrl.config.schema import Config
from asyncrl.errors import ConfigError, DataError
from asyncrl.ledger.store import LedgerStore
from asyncrl.run.directory import ledger_file, require_own
from asyncrl.run.metrics import FILE_NAME as METRICS_FILE
from asyncrl.run.metrics import last_step
from asyncrl.run.trainer_state import TrainerState, latest, read_state

FREE_SECTIONS = ("publish", "cluster")
FREE_KEYS = {
    "data": {"eval"},
    "reward": {"num_workers", "time_limit_s", "max_failures"},
    "generator": {
        *("count", "tensor_parallel", "max_groups_in_flight", "gpu_memory_utilization", "kv_cache_bytes"),
        *("enforce_eager", "keep_finished", "max_restarts"),
    },
    "learner": {
        *("count", "micro_batch_tokens", "gradient_checkpointing", "offload", "offload_reference", "num_threads"),
        *("checkpointing_keeps", "compile", "context_parallel", "keep_gathered", "max_restarts"),
    },
    "replay": {"lease_timeout_s", "max_lease_attempts", "max_quarantined", "port", "durability", "max_restarts"},
    "run": {
        *("name", "dir", "steps", "epochs", "save_every", "eval_every", "eval_prompts", "eval_samples"),
        *("eval_temperature", "startup_timeout_s", "step_timeout_s", "heartbeat_timeout_s", "no_progress_timeout_s"),
        *("stop_timeout_s", "trackers", "prometheus_port"),
    },
}
"""What a resumed run may have otherwise: neither the prompts, nor what is sampled and learned, depends on it."""


def find_checkpoint(run_dir: Path) -> tuple[Path | None, TrainerState]:
    """Where a run goes on: its latest checkpoint, or (None and zeros) its beginning.

    Raises:
        ConfigError: no run directory, or not the user's own.
        DataError: its ledger is missing, though it made steps, or lacks a batch that was taken after the checkpoint.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(f"--resume {run_dir}: no run directory (it has no config.yaml)")
    require_own(run_dir)
    checkpoint = latest(run_dir)
    state = TrainerState() if checkpoint is None else read_state(checkpoint)
    if checkpoint is None and last_step(run_dir / METRICS_FILE) < 0 and not ledger_file(run_dir).exists():
        return None, state  # it was killed while it started: nothing was drawn yet
    _check_ledger(ledger_file(run_dir), state)
    return checkpoint, state


def _check_ledger(path: Path, state: TrainerState) -> None:
    if not path.is_file():
        raise DataError(f"{path} does not exist: what became of the run's prompts is not known; start a new run")
    store = LedgerStore(path, durability="off")
    snapshot = store.snapshot()
    store.close()
    kept = {record.step for record in snapshot.records if record.state == "batched"}
    missing = set(range(state.step, snapshot.next_step)) - kept
    if snapshot.next_step < state.step or missing:
        raise DataError(
            f"{path} does not fit the checkpoint of step {state.step}: its next step is {snapshot.next_step}"
            + f", and the batches of steps {sorted(missing)} are not kept" * bool(missing)
            + "; was a later checkpoint removed?"
        )


def check_changes(run_dir: Path, config: Config) -> None:
    """Refuses a configuration under which this would be another run.

    Raises:
        ConfigError: names each key with both values.
    """
    before, now = (asdict(with_absolute_paths(each)) for each in (load(run_dir / "config.yaml"), config))
    changes = [
        f"{section}.{key}: {before[section][key]!r} → {value!r}"
        for section, values in now.items()
        for key, value in values.items()
        if value != before[section][key] and section not in FREE_SECTIONS and key not in FREE_KEYS.get(section, ())
    ]
    if config.learner.schedule != "constant":
        changes += [f"run.{key}: {old!r} → {new!r}" for key, old, new in _length(before, now) if old != new]
    if changes:
        raise ConfigError(
            f"--resume {run_dir}: a run goes on as it began, and these differ: {'; '.join(changes)}. "
            "Leave them out, or start a new run from `asyncrl export`"
        )


def _length(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What the schedule of the learning rate depends on."""
    return [(key, before["run"][key], now["run"][key]) for key in ("steps", "epochs")]
