"""`asyncrl export`: a run's checkpoint as a Hugging Face folder, or its adapter alone as a peft folder."""

from __future__ import annotations

from pathlib import Path

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.errors import DataError
from asyncrl.run.trainer_state import latest


def run_of(path: Path) -> Path | None:
    """The run directory that `path` is, or that it is a checkpoint of; None for anything else, such as a model."""
    if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        return path
    run = path.parent.parent
    return run if (path / "trainer.json").is_file() and (run / "config.yaml").is_file() else None


def export(checkpoint: Path, out: Path, adapter: bool = False) -> Path:
    """Writes the policy, with its tokenizer, and returns the folder.

    Args:
        checkpoint: a run directory (its latest checkpoint is taken) or one checkpoint of it.
        adapter: the LoRA adapter alone; else it is merged.

    Raises:
        DataError: there is no checkpoint, or no adapter to write, or `out` is not an empty or new folder, or cannot be
            written.
    """
    checkpoint = checkpoint.resolve()
    run = run_of(checkpoint)
    directory = latest(checkpoint) if checkpoint == run else checkpoint
    if run is None or directory is None:
        raise DataError(f"{checkpoint} is neither a run with a checkpoint nor a checkpoint of a run")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"--out {out}: it is there and not an empty folder; choose a new one")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        _write(load(run / "config.yaml"), directory, out, adapter)
    except PermissionError as error:
        raise DataError(f"--out {out}: cannot write there: {error.strerror}") from error
    return out


def _write(config: Config, directory: Path, out: Path, adapter: bool) -> None:
    from asyncrl.learn.adapter_export import export_adapter, export_merged
    from asyncrl.learn.checkpoint import export_hf

    if config.lora.rank is not None:
        write = export_adapter if adapter else export_merged
        write(directory, config.model, config.lora, out)
    elif adapter:
        raise DataError(
            f"{directory} has no adapter: its run trained every weight (lora.rank=null); leave --adapter out"
        )
    else:
        export_hf(directory, config.model.path, out, trust_remote_code=config.model.trust_remote_code)
