from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.data.splits import split_files, split_of
from asyncrl.errors import DataError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_a_folder_means_its_split_with_parquet_before_jsonl(tmp_path):
    [jsonl] = touch(tmp_path, "train.jsonl")
    assert split_files(tmp_path, "train") == [jsonl]
    [parquet] = touch(tmp_path, "train.parquet")
    assert split_files(tmp_path, "train") == [parquet]
    assert split_files(jsonl, "test") == [jsonl]
    with pytest.raises(DataError, match=r"neither test\.parquet nor test\.jsonl .*it has train\.jsonl, train\.parquet"):
        split_files(tmp_path, "test")
    with pytest.raises(DataError, match="does not exist"):
        split_files(tmp_path / "absent", "train")


@pytest.mark.parametrize("folder", ["", "data/", "train/"])
def test_shards_are_found_in_the_order_of_their_numbers(tmp_path, folder):
    names = [f"{folder}train-{number:05d}-of-00012.parquet" for number in range(12)]
    files = touch(tmp_path, *names)
    touch(tmp_path, f"{folder}training-notes.parquet", f"{folder}train-of-thought.parquet")
    assert split_files(tmp_path, "train") == files


def test_shards_without_a_total_are_ordered_by_number_not_by_name(tmp_path):
    files = touch(tmp_path, "train_2.jsonl.gz", "train_10.jsonl.gz")
    assert split_files(tmp_path, "train") == files


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002-a09b74b3ef9c3b56.parquet", "train-00001-of-00002-0c1d2e3f4a5b6c7d.parquet"],
        ["train/0000.parquet", "train/0001.parquet"],
        ["train/part-00000-of-00002.jsonl", "train/part-00001-of-00002.jsonl"],
    ],
)
def test_shards_are_found_as_the_hub_and_others_name_them(tmp_path, names):
    files = touch(tmp_path, *names)
    assert split_files(tmp_path, "train") == files


def test_a_name_of_the_hub_that_is_no_path_is_told_how_to_write_it():
    with pytest.raises(DataError, match="a data set of the hub is written hf://datasets/openai/gsm8k; give"):
        split_files(Path("openai/gsm8k"), "train")
    with pytest.raises(DataError, match=r"rows\.jsonl does not exist; give"):
        split_files(Path("absent/rows.jsonl"), "train")


def test_a_missing_shard_is_an_error_not_a_smaller_data_set(tmp_path):
    touch(tmp_path, "data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet")
    with pytest.raises(DataError, match=r"1 of 3 shards of train\.parquet are missing, first 1"):
        split_files(tmp_path, "train")


@pytest.mark.parametrize("name", ["test.json", "validation.parquet", "val.jsonl.zst", "dev-00000-of-00001.parquet"])
def test_the_held_out_split_may_be_called_otherwise(tmp_path, name):
    files = touch(tmp_path, "train.parquet", name)
    assert split_files(tmp_path, "test") == files[1:]
    assert split_of(files[1]) == "test"
    assert split_of(files[0]) == "train"


@given(total=st.integers(1, 30), missing=st.integers(0, 40))
def test_shards_are_taken_all_or_not_at_all(tmp_path_factory, total, missing):
    folder = tmp_path_factory.mktemp("shards")
    kept = [number for number in range(total) if number != missing]
    files = touch(folder, *(f"train-{number:05d}-of-{total:05d}.parquet" for number in kept))
    if len(kept) == total:
        assert split_files(folder, "train") == files
    else:
        with pytest.raises(DataError, match=r"missing|no train split"):
            split_files(folder, "train")


def test_two_sets_of_shards_side_by_side_are_refused(tmp_path):
    touch(tmp_path, "train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match=r"train-00000-of-0000\d.parquet are both shard 0; remove one"):
        split_files(tmp_path, "train")
