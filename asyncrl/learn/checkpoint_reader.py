"""Reads torch's distributed checkpoints without running anything that they say.

torch's own reader unpickles `.metadata`, and its planner each value that is no tensor: a changed checkpoint could run
any code. These two build nothing but tensors, numbers and the records that describe them.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.planner import ReadItem

from asyncrl.errors import DataError

_RECORDS = {
    *(("torch.distributed.checkpoint.metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *(("torch.distributed.checkpoint.metadata", f"{kind}StorageMetadata") for kind in ("Tensor", "Chunk", "Bytes")),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
}
"""What `.metadata` of torch 2.13 is made of, besides dtypes."""


class CheckpointReader(FileSystemReader):
    """As torch's, for checkpoints that anybody may have changed."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """
        Raises:
            DataError: it holds something else than records of tensors.
        """
        file = Path(self.path) / ".metadata"
        try:
            metadata = _RecordUnpickler(io.BytesIO(file.read_bytes())).load()
        except pickle.UnpicklingError as error:
            raise DataError(f"{file} is no checkpoint's: {error}. Nothing in it was run; do not use it") from error
        metadata.storage_meta.load_id = self.load_id
        return metadata


class CheckpointPlanner(DefaultLoadPlanner):
    """As torch's, but a value that is no tensor is a plain one."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """
        Raises:
            pickle.UnpicklingError: it is anything else.
        """
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


class _RecordUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _RECORDS:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
