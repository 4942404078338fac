import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.data.rows import Columns, read_rows
from asyncrl.errors import DataError


def pairs(file, prompt="prompt", answer="answer"):
    return [(row.prompt, row.answer) for row in read_rows([file], Columns(prompt, answer))]


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
    assert pairs(file, "q", "a") == [("one", "1"), ("é\n", "2")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "x", ', "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["x", "1"]', "must be a JSON object, not list"),
        ('{"question": "x", "answer": "1"}', r"no column 'prompt'; it has question, answer \(set data.prompt_column"),
        ('{"prompt": "x"}', "no column 'answer'"),
        ('{"prompt": 3, "answer": "1"}', "'prompt' must be text or a list of messages, not int"),
        ('{"prompt": "x", "answer": null}', "'answer' is null; a missing answer cannot be scored"),
        ('{"prompt": "x", "answer": true}', "'answer' must be text, a number, a list or an object, not bool"),
        ('{"prompt": "x", "answer": NaN}', "'answer' is nan; a missing answer cannot be scored"),
        ('{"prompt": ["x"], "answer": "1"}', r"'prompt'\[0\] must be an object with role and content, not str"),
        ('{"prompt": [], "answer": "1"}', "'prompt' is an empty list of messages"),
        ('{"prompt": [{"from": "human", "value": "x"}], "answer": "1"}', "with role and content, not from, value"),
        ('{"prompt": [{"role": "human", "content": "x"}], "answer": "1"}', "unknown role 'human'; use one of system"),
        ('{"prompt": [{"role": "user", "content": " "}], "answer": "1"}', "the message of the user is empty"),
        ('{"prompt": [{"role": "user", "content": 3}], "answer": "1"}', "content must be text, not int"),
        ('{"prompt": [{"role": "user", "content": [{"image": "x"}]}], "answer": "1"}', "images and other parts"),
        (
            '{"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}',
            "the last message has the role 'assistant'",
        ),
        ('{"prompt": " ", "answer": "1"}', "'prompt' is empty"),
        (
            json.dumps({"prompt": json.dumps([{"role": "user", "content": "x"}]), "answer": "1"}),
            "'prompt' is a list of messages written as JSON text; store the list itself",
        ),
        ('{"prompt": "\\ud800", "answer": "1"}', "not valid Unicode"),
    ],
)
def test_a_jsonl_row_that_cannot_be_used_is_named_by_file_and_line(tmp_path, line, reason):
    good = '{"prompt": "x", "answer": "1"}'
    file = write_lines(tmp_path / "rows.jsonl", good, line, good)
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: .*{reason}"):
        pairs(file)


def test_a_parquet_row_that_cannot_be_used_is_named_by_file_and_row(tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x", None], "answer": ["1", "2"]}), file)
    with pytest.raises(
        DataError, match=r"rows\.parquet, row 1: 'prompt' must be text or a list of messages, not NoneType"
    ):
        pairs(file)


def test_a_map_in_a_parquet_file_is_an_object(tmp_path):
    file = tmp_path / "rows.parquet"
    scores = pyarrow.array([[("ground_truth", "2")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["1+1="], "scores": scores}), file)
    (row,) = read_rows([file], Columns(answer="scores.ground_truth"))
    assert row.answer == "2"


def test_a_parquet_file_with_text_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "rows.parquet"
    offsets, content = pyarrow.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pyarrow.py_buffer(b"\xff")
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, offsets, content])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": text, "answer": ["1"]}), file)
    with pytest.raises(DataError, match=r"rows\.parquet: not a readable parquet file: 'utf-8'"):
        pairs(file)


def test_a_missing_parquet_column_is_named_with_those_that_exist(tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["x"], "answer": ["1"]}), file)
    with pytest.raises(DataError, match=r"no column 'prompt'; it has question, answer \(set data.prompt_column"):
        pairs(file)


def test_a_cut_off_parquet_file_is_refused(tmp_path):
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x"] * 100, "answer": ["1"] * 100}), file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file"):
        pairs(file)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_rows_is_refused(tmp_path, content):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match="has no rows"):
        pairs(file)


def test_an_empty_shard_is_named(tmp_path):
    good = write_lines(tmp_path / "train-0.jsonl", json.dumps(GOOD))
    with pytest.raises(DataError, match=r"train-1\.jsonl has no rows, one of 2 shards; write the data set again"):
        read_rows([good, write_lines(tmp_path / "train-1.jsonl", "")], Columns())


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        pairs(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"a data file is \.parquet, \.jsonl or \.json"):
        pairs(write_lines(tmp_path / "rows.csv", "a,b"))


GOOD = {"prompt": "x", "answer": "1"}


LINES, LIST = f"{json.dumps(GOOD)}\n" * 2, json.dumps([GOOD, GOOD])


@pytest.mark.parametrize(
    ("name", "codec", "content"),
    [("rows.jsonl.gz", "gzip", LINES), ("rows.jsonl.zst", "zstd", LINES), ("rows.json.gz", "gzip", LIST)],
)
def test_json_files_may_be_compressed(tmp_path, name, codec, content):
    with pyarrow.output_stream(str(tmp_path / name), compression=codec) as file:
        file.write(content.encode())
    assert pairs(tmp_path / name) == [("x", "1")] * 2


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([GOOD, GOOD], indent=2),
        json.dumps({"version": "1.0", "data": [GOOD, GOOD]}),
        f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n",
    ],
)
def test_a_json_file_is_a_list_of_objects_wrapped_or_not_or_lines(tmp_path, content):
    (tmp_path / "rows.json").write_text(content)
    assert pairs(tmp_path / "rows.json") == [("x", "1")] * 2


def test_a_json_file_of_one_object_is_one_row(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"prompt": [{"role": "user", "content": "x"}], "answer": "1"}))
    assert pairs(tmp_path / "rows.json") == [("x", "1")]


def test_a_byte_order_mark_windows_line_ends_and_blank_lines_are_read_over(tmp_path):
    line = json.dumps({"prompt": "é\u2028", "answer": "1"}, ensure_ascii=False).encode()
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n \n")
    assert pairs(tmp_path / "rows.jsonl") == [("é\u2028", "1")] * 2


def test_blank_lines_count_when_a_line_is_named(tmp_path):
    file = write_lines(tmp_path / "rows.jsonl", "", json.dumps(GOOD), "", "{}")
    with pytest.raises(DataError, match=r"rows\.jsonl:4: no column 'prompt'"):
        pairs(file)


def test_parquet_columns_may_be_dictionaries_large_strings_structs_and_lists(tmp_path):
    table = pyarrow.table(
        {
            "prompt": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
            "text": pyarrow.array(["x", "y", "z"], pyarrow.large_string()),
            "nested": [{"deep": {"answer": value}} for value in (1, 2, 3)],
            "several": [["1", "one"], ["2"], ["3"]],
            "weird.name": [1.5, 1e16, 3.0],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert pairs(tmp_path / "rows.parquet", "prompt", "text") == [("a", "x"), ("b", "y"), ("a", "z")]
    assert pairs(tmp_path / "rows.parquet", "text", "nested.deep.answer") == [("x", "1"), ("y", "2"), ("z", "3")]
    assert pairs(tmp_path / "rows.parquet", "text", "weird.name") == [("x", "1.5"), ("y", "1e+16"), ("z", "3.0")]
    [first, *_] = read_rows([tmp_path / "rows.parquet"], Columns("prompt", "several"))
    assert json.loads(first.answer) == json.loads(first.columns)["answer"] == ["1", "one"]


def test_a_conversation_is_kept_and_its_text_parts_are_joined(tmp_path):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}]
    messages = [{"role": "system", "content": "Add.", "name": None}, {"role": "user", "content": parts}]
    file = write_lines(tmp_path / "rows.jsonl", json.dumps({"prompt": messages, "answer": "3"}))
    [row] = read_rows([file], Columns())
    assert row.messages == [{"role": "system", "content": "Add."}, {"role": "user", "content": "one two"}]
    assert row.prompt == "Add.\none two"
    assert json.loads(row.columns) == {"messages": row.messages}


def test_columns_travel_when_a_reward_asks_for_them(tmp_path):
    record = {**GOOD, "level": 3, "tags": {"a": [1]}, "unused": "x" * 100}
    file = write_lines(tmp_path / "rows.jsonl", json.dumps(record))
    [asked] = read_rows([file], Columns(extra={"level": True, "tags": True, "absent": False}))
    assert json.loads(asked.columns) == {"level": 3, "tags": {"a": [1]}}
    [every] = read_rows([file], Columns(every=True))
    assert json.loads(every.columns) == {name: record[name] for name in ("level", "tags", "unused")}
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: no column 'difficulty', which a function of reward\.terms takes"
    ):
        read_rows([file], Columns(extra={"difficulty": True}))


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(text, text), min_size=1, max_size=5))
def test_any_text_survives_jsonl_and_parquet(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for ensure_ascii in (True, False):
        lines = [json.dumps({"prompt": p, "answer": a}, ensure_ascii=ensure_ascii) for p, a in rows]
        assert pairs(write_lines(folder / "rows.jsonl", *lines)) == rows
    columns = {"prompt": [p for p, _ in rows], "answer": [a for _, a in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "rows.parquet")
    assert pairs(folder / "rows.parquet") == rows
