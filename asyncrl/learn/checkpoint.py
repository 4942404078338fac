"""Checkpoints: everything a learner needs to go on exactly, in one folder a step.

    run_dir/checkpoints/step_000020/
      *.distcp, .metadata     parameters, optimizer and EMA reference, sharded (torch DCP): for any number of ranks
      rng_0.pt, rng_1.pt, …   random state of each rank
      rows.jsonl              figures of the steps since the checkpoint before, for a launcher that missed them
      trainer.json            TrainerState; written last

A checkpoint is written under a temporary name and renamed once every rank is done, so a folder with the final name is
always whole. The folder must be seen by all ranks (a shared file system when they are on several nodes). What a rank
holds is copied to host memory; a thread writes the copy while training goes on.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from asyncrl import devices
from asyncrl.errors import DataError, FinalError
from asyncrl.learn.checkpoint_reader import CheckpointPlanner, CheckpointReader
from asyncrl.learn.policy.model import load_causal_lm_config
from asyncrl.learn.update.step import Learner
from asyncrl.run.metrics import Row, to_json
from asyncrl.run.trainer_state import FORMAT, ROWS_FILE, TrainerState, read_state

_FULL_BYTES = 1 << 20


def save(directory: Path, learner: Learner, state: TrainerState, rows: Sequence[Row] = ()) -> None:
    """Write a checkpoint; one of the same name is replaced. Collective. Arguments and errors as in `begin_save`."""
    begin_save(directory, learner, state, rows).result()
    dist.barrier()


def begin_save(
    directory: Path,
    learner: Learner,
    state: TrainerState,
    rows: Sequence[Row] = (),
    group: dist.ProcessGroup | None = None,
) -> Future[None]:
    """Copy what the checkpoint holds, and write it in a thread. Collective.

    Args:
        rows: on rank 0, for rows.jsonl.
        group: of CPUs, which nothing else may use until the future is done; None = the default one.

    Returns:
        Done when this rank has written its part; on rank 0 when the checkpoint is whole and has its name. Its result
        raises FinalError if it cannot be written, as on a full disk.

    Raises:
        FinalError: as the future's result.
    """
    partial = directory.with_name(f".{directory.name}.partial")
    rank = dist.get_rank()
    try:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        torch.save(_rng_state(), partial / f"rng_{rank}.pt")
        dist.barrier()  # rank 0 may now finish as soon as every rank's tensors are there
        saving = dcp.async_save(_tensors(learner), checkpoint_id=partial, process_group=group)
    except (OSError, RuntimeError, CheckpointException) as error:
        raise _reason(directory, error) from error
    assert isinstance(saving, Future)
    done: Future[None] = Future()

    def finish(saved: Future[Any]) -> None:
        try:
            saved.result()
            if rank == 0:
                _finish(partial, directory, state, rows)
        except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
            done.set_exception(_reason(directory, error))
        else:
            done.set_result(None)

    saving.add_done_callback(finish)
    return done


def _finish(partial: Path, directory: Path, state: TrainerState, rows: Sequence[Row]) -> None:
    (partial / ROWS_FILE).write_text("".join(f"{to_json(row)}\n" for row in rows), encoding="utf-8")
    (partial / "trainer.json").write_text(json.dumps({"format": FORMAT, **asdict(state)}))
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _reason(directory: Path, error: BaseException) -> BaseException:
    """A full disk's error in words that help; any other as it is."""
    free_bytes = shutil.disk_usage(directory.parent).free
    if "No space left" not in str(error) and free_bytes >= _FULL_BYTES:  # torch's writer does not give the reason
        return error
    full = FinalError(
        f"the checkpoint {directory} cannot be written, the disk is full ({free_bytes:,} bytes are free). "
        "Make room, then go on with the run: --resume"
    )
    full.__cause__ = error
    return full


def load(directory: Path, learner: Learner) -> TrainerState:
    """Restore a learner of any number of ranks: parameters, optimizer, EMA reference, update count, random state.

    Collective. A rank that the saved run did not have keeps its fresh random state.

    Raises:
        DataError: no checkpoint, one of another format or model, or a weight of this rank that is not finite.
    """
    state = read_state(directory)
    tensors = _tensors(learner)
    _check_model(directory, tensors)
    dcp.load(tensors, storage_reader=CheckpointReader(directory), planner=CheckpointPlanner())
    set_state_dict(
        learner.policy.hf,
        learner.optimizer,
        model_state_dict=tensors["model"],
        optim_state_dict=tensors["optimizer"],
    )
    if learner.reference is not None and "reference" in tensors:
        set_model_state_dict(learner.reference.hf, tensors["reference"])
    _require_finite(directory, tensors["model"])
    learner.restore(state)
    rng = directory / f"rng_{dist.get_rank()}.pt"
    if rng.is_file():
        _set_rng_state(torch.load(rng, weights_only=True))
    return state


def export_hf(directory: Path, model_path: str, out: Path, *, trust_remote_code: bool = False) -> None:
    """Write the checkpoint's policy as a Hugging Face folder, with the tokenizer of `model_path`. One plain process.

    The weights get the type that `model_path` has; its generation_config.json is copied.

    Raises:
        DataError: no checkpoint, one of another model, or `model_path` cannot be loaded.
    """
    read_state(directory)
    config = load_causal_lm_config(model_path, trust_remote_code=trust_remote_code)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    tensors = {"model": _apart(model.state_dict())}
    _check_model(directory, tensors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as no_dist asks for
        dcp.load(tensors, storage_reader=CheckpointReader(directory), planner=CheckpointPlanner(), no_dist=True)
    if any(not torch.equal(value, tensors["model"][name]) for name, value in model.state_dict().items()):
        # The folder calls tied what it stores apart; transformers then loads, and the run trained, two tensors.
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        model.load_state_dict(tensors["model"])
    model.to(config.dtype or torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(model_path, trust_remote_code=trust_remote_code).save_pretrained(out)
    generation_config = cached_file(model_path, "generation_config.json", _raise_exceptions_for_missing_entries=False)
    if generation_config is not None:  # as it is: what transformers would write may lack a stop token, or be refused
        shutil.copyfile(generation_config, out / "generation_config.json")


def _apart(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by name, those that share memory with an earlier one copied."""
    seen: set[int] = set()
    apart = {}
    for name, value in state.items():
        apart[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return apart


def _tensors(learner: Learner) -> dict[str, Any]:
    """Model, optimizer, EMA reference by Hugging Face parameter names, which do not depend on the number of ranks."""
    model, optimizer = get_state_dict(learner.policy.hf, learner.optimizer)
    tensors = {"model": model, "optimizer": optimizer}
    if learner.reference is not None and learner.config.algorithm.reference == "ema":
        tensors["reference"] = get_model_state_dict(learner.reference.hf)
    return tensors


def _check_model(directory: Path, tensors: dict[str, Any]) -> None:
    saved = CheckpointReader(directory).read_metadata().state_dict_metadata
    if "reference" in tensors and not any(name.startswith("reference.") for name in saved):
        raise DataError(f"{directory} was written without an EMA reference; resume it with algorithm.reference=frozen")
    for name, tensor in tensors["model"].items():
        entry = saved.get(f"model.{name}")
        if entry is None or entry.size != tensor.shape:
            found = "none" if entry is None else f"one of shape {list(entry.size)}"
            raise DataError(
                f"{directory} is a checkpoint of another model: it has {found} where {name} {list(tensor.shape)} is due"
            )


def _require_finite(directory: Path, parameters: dict[str, Any]) -> None:
    """Of what this rank holds. No generator would take them, and no step make them finite again."""
    for name, tensor in parameters.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not torch.isfinite(local).all():
            raise DataError(
                f"{directory}: {name} has NaN or infinite values, so the run cannot go on from here; move this "
                "checkpoint away and go on from the one before (--resume), or export that"
            )


def _rng_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if devices.count():
        state[devices.TORCH_TYPE] = devices.random_state()
    return state


def _set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if devices.TORCH_TYPE in state and devices.count():
        devices.set_random_state(state[devices.TORCH_TYPE])
