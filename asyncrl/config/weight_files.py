"""The weight files of a model folder, looked through before a run starts; of most of them only the headers are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from asyncrl.errors import ConfigError

_ROWS_AT_ONCE = 4096


class _Index(msgspec.Struct):
    """`*.index.json` of a model in several files."""

    weight_map: dict[str, str]
    """Parameter → file."""


def check_weight_files(folder: Path, tied: Mapping[str, str]) -> None:
    """Refuses weights that the learner could not load, or that it and the generators would take differently.

    Args:
        tied: name of each tied parameter → name of the one that it shares, by the model's config.

    Raises:
        ConfigError: a shard of the index is missing, a file is not whole, or a tied parameter has weights of its own.
    """
    for index in sorted(folder.glob("*.index.json")):
        _check_shards(index)
    holder: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                holder |= dict.fromkeys(tensors.keys(), file)
        except SafetensorError as error:
            raise ConfigError(f"model.path={folder}: {file.name} is not whole ({error}); copy it again") from error
    for name, source in tied.items():
        if name in holder and source in holder and not _equal(holder[name], name, holder[source], source):
            raise ConfigError(
                f"model.path={folder}: config.json has tie_word_embeddings=true, but {name} and {source} are both "
                f"stored, and differ. The learner would train both and the generators take {source} for both; set "
                "tie_word_embeddings=false in config.json"
            )


def _check_shards(index: Path) -> None:
    try:
        names = set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
    except msgspec.DecodeError as error:
        raise ConfigError(f"model.path={index.parent}: {index.name} is no index of weights: {error}") from error
    if missing := sorted(name for name in names if not (index.parent / name).is_file()):
        raise ConfigError(
            f"model.path={index.parent}: {len(missing)} of the {len(names)} files in {index.name} are missing, such as "
            f"{missing[0]}; copy them into the folder"
        )


def _equal(file: Path, name: str, other_file: Path, other_name: str) -> bool:
    """Compared a few rows at a time: the two may take gigabytes."""
    with safe_open(file, framework="pt") as tensors, safe_open(other_file, framework="pt") as other_tensors:
        rows, other_rows = tensors.get_slice(name), other_tensors.get_slice(other_name)
        if rows.get_shape() != other_rows.get_shape():
            return False
        starts = range(0, rows.get_shape()[0], _ROWS_AT_ONCE)
        return all(
            torch.equal(rows[start : start + _ROWS_AT_ONCE], other_rows[start : start + _ROWS_AT_ONCE])
            for start in starts
        )
