import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.data.read import read_rows, resolve_split
from asyncrl.errors import DataError


def write_lines(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_are_read_in_order_and_numeric_answers_become_text(tmp_path, suffix):
    file = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        write_lines(file, '{"q": "one", "a": 1}', '{"q": "é\\n", "a": 2}', "")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"q": ["one", "é\n"], "a": [1, 2]}), file)
    assert read_rows(file, "q", "a") == [("one", "1"), ("é\n", "2")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "x", ', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["x", "1"]', "must be a JSON object, not list"),
        ('{"question": "x", "answer": "1"}', r"no column 'prompt'; it has question, answer \(set data.prompt_column"),
        ('{"prompt": "x"}', "no column 'answer'"),
        ('{"prompt": ["x"], "answer": "1"}', "'prompt' must be text, not list"),
        ('{"prompt": 3, "answer": "1"}', "'prompt' must be text, not int"),
        ('{"prompt": "x", "answer": null}', "'answer' must be text, not NoneType"),
        ('{"prompt": "x", "answer": true}', "'answer' must be text, not bool"),
        ('{"prompt": " ", "answer": "1"}', "'prompt' is empty"),
        ('{"prompt": "\\ud800", "answer": "1"}', "not valid Unicode"),
        ("", "the line is empty"),
    ],
)
def test_a_jsonl_row_that_cannot_be_used_is_named_by_file_and_line(tmp_path, line, reason):
    good = '{"prompt": "x", "answer": "1"}'
    file = write_lines(tmp_path / "rows.jsonl", good, line, good)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{reason}"):
        read_rows(file, "prompt", "answer")


def test_a_parquet_row_that_cannot_be_used_is_named_by_file_and_row(tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x", None], "answer": ["1", "2"]}), file)
    with pytest.raises(DataError, match=r"rows\.parquet, row 1: 'prompt' must be text, not NoneType"):
        read_rows(file, "prompt", "answer")


def test_a_missing_parquet_column_is_named_with_those_that_exist(tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["x"], "answer": ["1"]}), file)
    with pytest.raises(DataError, match=r"no column 'prompt'; it has question, answer \(set data.prompt_column"):
        read_rows(file, "prompt", "answer")


def test_a_cut_off_parquet_file_is_refused(tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x"] * 100, "answer": ["1"] * 100}), file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_rows(file, "prompt", "answer")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match="has no rows"):
        read_rows(file, "prompt", "answer")


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "rows.jsonl", "prompt", "answer")
    with pytest.raises(DataError, match=r"is \.jsonl or \.parquet"):
        read_rows(write_lines(tmp_path / "rows.csv", "a,b"), "prompt", "answer")


def test_a_folder_means_its_split_with_parquet_before_jsonl(tmp_path):
    train_jsonl = write_lines(tmp_path / "train.jsonl", "{}")
    assert resolve_split(tmp_path, "train") == train_jsonl
    train_parquet = write_lines(tmp_path / "train.parquet", "")
    assert resolve_split(tmp_path, "train") == train_parquet
    assert resolve_split(train_jsonl, "test") == train_jsonl
    with pytest.raises(DataError, match=r"neither test\.parquet nor test\.jsonl"):
        resolve_split(tmp_path, "test")
    with pytest.raises(DataError, match="does not exist"):
        resolve_split(tmp_path / "absent", "train")


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(text, text), min_size=1, max_size=5))
def test_any_text_survives_jsonl_and_parquet(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for ensure_ascii in (True, False):
        lines = [json.dumps({"prompt": p, "answer": a}, ensure_ascii=ensure_ascii) for p, a in rows]
        assert read_rows(write_lines(folder / "rows.jsonl", *lines), "prompt", "answer") == rows
    columns = {"prompt": [p for p, _ in rows], "answer": [a for _, a in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")
    assert read_rows(folder / "rows.parquet", "prompt", "answer") == rows
