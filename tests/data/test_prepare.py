import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest

from asyncrl.data.arithmetic import NUM_TEST_ROWS, arithmetic_rows, forget_carries
from asyncrl.data.prepare import GSM8K_INSTRUCTION, prepare_arithmetic, prepare_foreign, prepare_gsm8k
from asyncrl.data.rows import Columns, read_rows
from asyncrl.errors import DataError, UserError


def pairs(file):
    return [(row.prompt, row.answer) for row in read_rows([file], Columns())]


def write_gsm8k(folder, train, test):
    folder.mkdir()
    for split, rows in (("train", train), ("test", test)):
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_gsm8k_gets_the_instruction_and_keeps_the_whole_answer(tmp_path):
    train = [("How many?", "Two and two.\n#### 4"), ("And now?", "#### 1,000")]
    source = write_gsm8k(tmp_path / "gsm8k", train, train[:1])
    assert prepare_gsm8k(str(source), tmp_path / "out") == {"train": 2, "test": 1}
    rows = pairs(tmp_path / "out/train.parquet")
    assert rows == [(f"{question} {GSM8K_INSTRUCTION}", answer) for question, answer in train]
    assert pyarrow.parquet.read_schema(tmp_path / "out/test.parquet").names == ["prompt", "answer"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["test.parquet", "train.parquet"]


def test_a_broken_gsm8k_line_is_named_and_nothing_is_written(tmp_path):
    source = write_gsm8k(tmp_path / "gsm8k", [("q", "#### 1")], [("q", "#### 1"), ("q", "no final answer")])
    with pytest.raises(DataError, match=r"test\.jsonl:2: 'answer' has no final answer after ####"):
        prepare_gsm8k(str(source), tmp_path / "out")
    (source / "train.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n{"question": ')
    with pytest.raises(DataError, match=r"train\.jsonl:2: not valid JSON"):
        prepare_gsm8k(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_files_are_not_overwritten(tmp_path):
    (tmp_path / "test.parquet").write_text("precious")
    with pytest.raises(UserError, match=r"test\.parquet exist"):
        prepare_arithmetic(tmp_path, seed=0)
    with pytest.raises(UserError, match="is a file"):
        prepare_arithmetic(tmp_path / "test.parquet", seed=0)
    assert (tmp_path / "test.parquet").read_text() == "precious"


def test_prepared_arithmetic_is_what_the_quickstart_generates(tmp_path):
    counts = prepare_arithmetic(tmp_path / "out", seed=3)
    for split in ("train", "test"):
        rows = pairs(tmp_path / f"out/{split}.parquet")
        assert rows == arithmetic_rows(split, seed=3)
        assert counts[split] == len(rows)


USER = {"role": "user", "content": "1+1="}
ASSISTANT = {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    ("layout", "record"),
    [
        ("verl", {"data_source": "x", "prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}}),
        ("trl", {"prompt": [USER], "solution": "2", "data_source": "x"}),
        ("trl", {"prompt": "1+1=", "completion": "2", "data_source": "x"}),
        ("trl", {"prompt": [USER], "completion": [ASSISTANT], "data_source": "x"}),
        ("trl", {"messages": [USER, ASSISTANT], "data_source": "x"}),
        ("trl", {"messages": [USER], "ground_truth": 2, "data_source": "x"}),
    ],
)
def test_data_of_other_trainers_becomes_prompt_and_answer_and_keeps_its_other_columns(tmp_path, layout, record):
    (tmp_path / "in").mkdir()
    for name in ("train-00000-of-00001", "validation"):
        (tmp_path / "in" / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    assert prepare_foreign(layout, tmp_path / "in", tmp_path / "out") == {"train": 1, "test": 1}
    assert pairs(tmp_path / "out/test.parquet") == [("1+1=", "2")]
    [row] = read_rows([tmp_path / "out/train.parquet"], Columns(extra={"data_source": True}))
    assert json.loads(row.columns)["data_source"] == "x"


@pytest.mark.parametrize(("layout", "hint"), [("verl", r"reward_model\.ground_truth"), ("trl", "messages that end in")])
def test_a_row_of_another_layout_is_named(tmp_path, layout, hint):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "x", "label_of_mine": "1"}\n')
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{hint}.*it has prompt, label_of_mine"):
        prepare_foreign(layout, file, tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(UserError, match=r"--out /proc/x: cannot write there"):
        prepare_arithmetic(Path("/proc/x"), seed=0)


def operands(prompt):
    match = re.fullmatch(r"([1-9]\d?)\+([1-9]\d?)=", prompt)
    return int(match[1]), int(match[2])


def test_arithmetic_is_right_held_out_and_drawn_from_the_seed():
    train, test = arithmetic_rows("train", 0), arithmetic_rows("test", 0)
    for prompt, answer in train + test:
        a, b = operands(prompt)
        assert min(a, b) < 10
        assert a + b == int(answer)
    assert len(test) == NUM_TEST_ROWS
    assert len({prompt for prompt, _ in train + test}) == len(train) + len(test) == 1701
    assert arithmetic_rows("test", 0) == test
    assert arithmetic_rows("test", 1) != test


def test_the_careless_corpus_forgets_most_carries_and_nothing_else():
    rows = arithmetic_rows("train", 0)
    careless = forget_carries(rows, seed=0)
    assert [prompt for prompt, _ in careless] == [prompt for prompt, _ in rows]
    errors = []
    for (prompt, right), (_, given) in zip(rows, careless, strict=True):
        a, b = operands(prompt)
        has_carry = a // 10 + b // 10 != (a + b) // 10
        errors += [int(right) - int(given)] if has_carry else []
        assert has_carry or given == right
    assert set(errors) == {0, 10}
    assert 0.75 < errors.count(10) / len(errors) < 0.85
