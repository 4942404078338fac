"""A changed checkpoint runs no code when it is read."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from asyncrl.errors import DataError
from asyncrl.learn.checkpoint_reader import CheckpointPlanner, CheckpointReader


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._folder),)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_it_reads_what_torch_writes(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = {"a": {"b": torch.arange(12, dtype=dtype).reshape(3, 4)}, "lr": 0.25, "betas": (0.9, 0.95), "name": None}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    found = {"a": {"b": torch.zeros(3, 4, dtype=dtype)}, "lr": 0.0, "betas": (0.0, 0.0), "name": "?"}
    dcp.load(found, storage_reader=CheckpointReader(tmp_path), planner=CheckpointPlanner(), no_dist=True)
    assert torch.equal(found["a"]["b"], saved["a"]["b"])  # type: ignore[index]
    assert {key: found[key] for key in ("lr", "betas", "name")} == {"lr": 0.25, "betas": (0.9, 0.95), "name": None}


def test_metadata_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(DataError, match=r"asks for posix\.mkdir"):
        CheckpointReader(tmp_path).read_metadata()
    assert not (tmp_path / "ran").exists()
    with (tmp_path / ".metadata").open("rb") as stream:
        pickle.load(stream)  # the bomb is live
    assert (tmp_path / "ran").exists()


def test_a_value_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    value = io.BytesIO()
    torch.save(Bomb(tmp_path / "ran"), value)
    value.seek(0)
    zeros = torch.Size([0])
    index = MetadataIndex("lr")
    item = ReadItem(LoadItemType.BYTE_IO, index, zeros, index, zeros, zeros)
    with pytest.raises(pickle.UnpicklingError):
        CheckpointPlanner().load_bytes(item, value)
    assert not (tmp_path / "ran").exists()
