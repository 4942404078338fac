from __future__ import annotations

import io
import json
import math
from dataclasses import replace

from rich.console import Console

from asyncrl.evaluation.figures import Answer, data_set_figures, to_json, to_table, vote_of

RIGHT = Answer("a.jsonl", 0, 0, "1+1=", "2", "2", "2", 1.0, True, False, 2)
WRONG = replace(RIGHT, completion="3", final_answer="3", reward=0.0, correct=False)
UNSCORED = replace(WRONG, reward=math.nan)


def prompt(row: int, *answers: Answer) -> list[Answer]:
    return [replace(answer, row=row, sample=sample) for sample, answer in enumerate(answers)]


def test_the_figures_are_means_over_prompts_and_a_failed_reward_counts_as_wrong() -> None:
    answers = [*prompt(0, RIGHT, RIGHT, WRONG, RIGHT), *prompt(5, WRONG, WRONG, RIGHT, UNSCORED)]
    figures = data_set_figures(answers, [2, 4], num_failed_prompts=1)
    assert (figures.num_prompts, figures.num_samples, figures.num_failed_prompts) == (2, 4, 1)
    values = {name: round(estimate.value, 6) for name, estimate in figures.accuracy.items()}
    # Of row 0 in lots of 2: right twice, then one vote each, ½; of row 5: wrong twice, then ½.
    assert values == {"pass@1": 0.5, "pass@2": 0.75, "pass@4": 1.0, "maj@2": 0.5, "maj@4": 0.5}
    assert figures.num_unscored == 1
    assert figures.reward_mean == 4 / 7


def test_without_a_final_answer_there_is_no_majority() -> None:
    silent = replace(RIGHT, final_answer=None)
    assert set(data_set_figures(prompt(0, silent, silent), [2], 0).accuracy) == {"pass@1", "pass@2"}


def test_numbers_vote_by_their_value_and_words_as_they_stand() -> None:
    assert vote_of("so #### 1,000") == vote_of(r"\boxed{1000.0}") == "1000"
    assert vote_of(r"\boxed{x + 1}") == "x + 1"
    assert vote_of("I do not know") is None


def test_json_has_null_where_no_completion_could_be_scored() -> None:
    (row,) = json.loads(to_json([data_set_figures(prompt(0, UNSCORED), [], 0)]))
    assert row["reward_mean"] is None
    assert row["accuracy"]["pass@1"]["value"] == 0.0


def test_the_table_has_a_column_for_each_data_file_and_fits_a_terminal() -> None:
    silent = [replace(answer, data="b.jsonl", final_answer=None) for answer in prompt(0, RIGHT, WRONG)]
    figures = [data_set_figures(answers, [2], 0) for answers in (prompt(0, RIGHT, RIGHT), silent)]
    screen = io.StringIO()
    Console(file=screen, width=80).print(to_table(figures))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in screen.getvalue().splitlines()]
    assert "a.jsonl" in screen.getvalue()
    assert ["pass@1", "100.0% (20.7 to 100.0)", "50.0% (5.5 to 94.5)"] in lines
    assert next(cells for cells in lines if cells[:1] == ["maj@2"])[2] == "–"
    assert ["prompts × completions", "1 × 2", "1 × 2"] in lines
