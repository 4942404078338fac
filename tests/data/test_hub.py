"""Data sets of the hub from the local cache, and what is said where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncrl.data.hub import hub_folder
from asyncrl.data.splits import split_files
from asyncrl.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One snapshot of one data set with two subsets, as huggingface_hub keeps it."""
    for module in ("constants", "_snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_OFFLINE", True, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "datasets--people--sums"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for subset in ("easy", "hard"):
        file = folder / "snapshots" / COMMIT / subset / "train-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_snapshot_in_the_cache_is_found_by_name_revision_and_folder(revision: str) -> None:
    (file,) = split_files(hub_folder(f"hf://datasets/people/sums{revision}/hard"), "train")
    assert file.parent.name == "hard"
    assert file.parent.parent.name == COMMIT


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://datasets/people/products", r"not in the local hub cache \(.*\), and HF_HUB_OFFLINE is set; download it"),
        ("hf://datasets/people/sums@v2", r"sums@v2: not in the local hub cache"),
        ("hf://datasets/people/sums/medium", r"no medium in it; it has easy, hard"),
        ("hf://people/sums", r"a data set of the hub is hf://datasets/OWNER/NAME, with @REVISION and /FOLDER or not"),
    ],
)
def test_what_is_not_there_is_named_with_the_way_out(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hub_folder(source)
