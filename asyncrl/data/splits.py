"""Which files hold a split: one file, shards of it, a folder of splits, a snapshot of a hub data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from asyncrl.errors import DataError

Split = Literal["train", "test"]

FORMATS = (".parquet", ".jsonl", ".json")
SUFFIXES = (*FORMATS, *(f"{name}{packed}" for name in (".jsonl", ".json") for packed in (".gz", ".zst")))
"""In the order in which they are looked for."""

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "validation", "valid", "val", "dev", "eval"),
}
_SHARD = re.compile(r"[-_.](?P<number>\d+)(?:-of-(?P<total>\d+)(?:-[0-9a-f]+)?)?")
"""What follows the split's name; the hub's older files have a hash after the numbers."""
_NUMBERED = re.compile(r"(?:(?:part|shard)[-_.])?(?P<number>\d+)(?:-of-(?P<total>\d+))?")
"""A whole name, in a folder that has the split's."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def suffix_of(path: Path) -> str:
    """Such as `.jsonl.gz`; empty when it is none of SUFFIXES."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def split_files(path: Path, split: Split) -> list[Path]:
    """The file itself; or the split's files in a folder, in its `data`, or in a folder with the split's name.

    A split is `train.SUFFIX` or its shards `train-00000-of-00004.SUFFIX`. The test split may also be called validation,
    valid, val, dev or eval.

    Raises:
        DataError: nothing there, a folder without that split, or without one of its shards.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(
            f"{path} does not exist; {hub_hint(path)}give a {', '.join(FORMATS)} file, or a folder of splits"
        )
    if found := find_split(path, split):
        return found
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "nothing"
    raise DataError(
        f"folder {path} has no {_NAMES[split][0]} split, neither {split}.parquet nor {split}.jsonl nor shards such as "
        f"{split}-00000-of-00001.parquet; it has {names}"
    )


def find_split(folder: Path, split: Split) -> list[Path]:
    """As `split_files`, of a folder; none when the split is not there."""
    for name in _NAMES[split]:
        for place in (folder, folder / "data", folder / name):
            if found := _whole_or_shards(place, name):
                return found
    return []


def hub_hint(path: Path) -> str:
    """How to write what may be meant as a name of the hub; empty when it cannot be one."""
    is_name = _HUB_NAME.fullmatch(str(path)) and not path.parent.exists()
    return f"a data set of the hub is written hf://datasets/{path}; " if is_name and not suffix_of(path) else ""


def split_of(file: Path) -> Split:
    """By its name; train when that says nothing."""
    return "test" if file.name.lower().startswith(_NAMES["test"]) else "train"


def _whole_or_shards(folder: Path, name: str) -> list[Path]:
    for suffix in SUFFIXES:
        whole = folder / f"{name}{suffix}"
        if whole.is_file():
            return [whole]
        if shards := _shards(folder, name, suffix, _SHARD):
            return shards
        if folder.name == name and (shards := _shards(folder, "", suffix, _NUMBERED)):
            return shards
    return []


def _shards(folder: Path, name: str, suffix: str, pattern: re.Pattern[str]) -> list[Path]:
    """In the order of their numbers."""
    found: dict[int, Path] = {}
    total = 0
    for file in folder.glob(f"{name}*{suffix}"):
        match = pattern.fullmatch(file.name.removeprefix(name).removesuffix(suffix))
        if match:
            number = int(match["number"])
            if number in found:
                raise DataError(f"{folder}: {found[number].name} and {file.name} are both shard {number}; remove one")
            found[number] = file
            total = max(total, int(match["total"] or 0))
    missing = sorted(set(range(total)) - set(found))
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {total} shards of {name}{suffix} are missing, first {missing[0]}")
    return [found[number] for number in sorted(found)]
