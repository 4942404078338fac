import sys
from fractions import Fraction
from math import isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.config.schema import RewardTerm
from asyncrl.errors import ConfigError
from asyncrl.rewards.final_answer import final_number
from asyncrl.rewards.functions import format_score, math, numeric, resolve, shaped_numeric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+2 is\n#### 4", 4),
        ("#### 3\nno, wait\n#### 4\nThanks.", 4),
        ("#### four, or 4", None),
        (r"so \boxed{3}, no: \boxed{ 4 }.", 4),
        (r"\boxed{5} in short\n#### 4", 4),
        (r"\boxed{\frac{1}{2}}", Fraction(1, 2)),
        ("#### Step 2: add up\n20+28\n\nThe result is $\\boxed{48}$.", 48),
        ("#### 2. Add up\n20+28\n\\boxed{48}", 48),
        ("\\boxed{48}\n#### 2. Check\n20+28=48", 48),
        ("#### 48\n#### A note\nThat was easy.", 48),
        ("\\boxed{47}, no.\n#### 48", 48),
        (r"#### \boxed{48}", 48),
        ("**#### 48**", 48),
        (r"\boxed{4", None),
        (" 32 \n", 32),
        ("The answer is 32", None),
        ("####", None),
    ],
)
def test_the_final_number_follows_the_mark_or_stands_in_the_box_or_is_the_whole_text(text, value):
    assert final_number(text) == value


@given(number=st.fractions(-1000, 1000, max_denominator=100), text=st.text(max_size=30))
@settings(deadline=None)
def test_numeric_is_one_exactly_for_an_equal_number(number, text):
    answer = f"Because.\n#### {number}"
    assert numeric(f"{text}\n#### {number}", answer) == 1
    assert numeric(f"{text}\n#### {number + 1}", answer) == 0
    assert numeric(f"\\boxed{{{number}}}", answer) == 1


@given(text=st.text())
@settings(deadline=None)
def test_any_completion_gets_a_score_between_zero_and_one(text):
    for completion in (text, f"#### {text}", f"\\boxed{{{text}}}"):
        correct = numeric(completion, "7")
        assert correct in (0, 1)
        assert format_score(completion) in (0, 1)
        shaped = shaped_numeric(completion, "7")
        assert shaped == 1 if correct else 0 <= shaped <= 0.5


def test_an_answer_without_a_number_cannot_be_scored():
    for function in (numeric, shaped_numeric):
        with pytest.raises(ValueError, match="the answer 'none' states no number"):
            function("4", "none")


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("so\n#### 4", 1),
        ("so\n#### $1,000.", 1),
        (r"so \boxed{4}", 1),
        (r"so $\boxed{4}$.", 1),
        ("#### 4\nand so on", 0),
        (r"\boxed{4} and so on", 0),
        ("#### many", 0),
        ("4", 0),
        ("", 0),
    ],
)
def test_format_wants_the_text_to_end_in_a_final_answer(completion, score):
    assert format_score(completion) == score


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("#### 10", 1.0),
        ("#### 20", 0.2 + 0.3 / 2),  # off by the answer's own size
        ("#### 5\nthen more", 0.3 / 1.5),
        ("no answer", 0.0),
    ],
)
def test_shaped_numeric_adds_form_and_closeness(completion, score):
    assert isclose(shaped_numeric(completion, "#### 10"), score)


@pytest.mark.parametrize(
    "answer",
    [
        r"4\sqrt{7}",
        r"\frac{3}{4}",
        r"\left(3, \frac{\pi}{2}\right)",
        "6!",
        "8{,}150",
        "(4, 9)",
        "[2, 5)",
        r"(-\infty, 3]",
        "2, 3",
        r"\text{north}",
        r"\text{(B)}",
        "Paris",
        r"90^\circ",
        r"\$32{,}000",
        "x^2 + 2x + 1",
        "3 + 2i",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"11\sqrt2",
        "1e16",
        r"\begin{bmatrix} \frac{1}{2} & -2 \end{bmatrix}",
        r"\langle 1, 2, 3 \rangle",
        r"10\sqrt{3} \text{ cm}",
        r"3 \text{ and } 5",
        "3 or 5",
        r"x = 2 \text{ or } x = 3",
        "y = mx + b",
        r"\int_0^1 x dx",
        r"\angle ABC",
        r"\text{I, II, and III}",
        "B and C",
        "10:15 AM",
        "1 hour 30 minutes",
    ],
)
def test_math_reads_a_reference_whether_or_not_it_is_marked_as_latex(answer):
    for reference in (answer, f"\\boxed{{{answer}}}", f"So it is\n#### {answer}"):
        for completion in (f"$\\boxed{{{answer}}}$", f"So: \\boxed{{{answer}}}.", f"So\n#### {answer}"):
            assert math(completion, reference) == 1
        assert math(r"\boxed{17}", reference) == 0
        assert math("I do not know.", reference) == 0


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        (r"so \boxed{\frac{2}{4}}", r"$\frac{1}{2}$", 1),
        (r"so \boxed{\frac{1}{3}}", r"$\frac{1}{2}$", 0),
        (r"\boxed{4}", r"4\sqrt{7}", 0),
        (r"4\sqrt{7}", "4", 0),
        (r"$\boxed{720}$", "6!", 1),
        (r"\boxed{0.5}", r"\frac12", 1),
        (r"the roots are \boxed{2} and \boxed{3}", "2, 3", 1),
        (r"\boxed{North}", r"\text{north}", 1),
        (r"\boxed{south}", r"\text{north}", 0),
        ("#### 10000000000000000", "1e16", 1),
        ("#### Step 2\nSo $x = \\frac{1}{2}$.", r"\frac12", 1),
        (r"\boxed{12_5}", "12_5", 1),
        (r"\boxed{12_{5}}", "12_5", 1),
        (r"\boxed{12}", "12_5", 0),
        (r"\boxed{12_5}", "12", 0),
        (r"\boxed{\left[ 2,5 \right).}", "[2, 5)", 1),
        (r"\boxed{\varnothing}", r"\emptyset", 1),
        (r"\boxed{\text{B. }}", "B", 1),
        (r"\boxed{1.2}", r"\langle 1, 2 \rangle", 0),
        (r"\boxed{\frac13}", r"0.\overline{3}", 1),
        (r"\boxed{1 hour 45 minutes}", "1 hour 30 minutes", 0),
        (r"\boxed{10}", "10:15 AM", 0),
        (r"\boxed{11/2}", "1 1/2", 0),
        (r"\boxed{3 and 4}", "3 and 2", 0),
    ],
)
def test_math_compares_values(completion, answer, score):
    assert math(completion, answer) == score


@pytest.mark.parametrize(
    "answer", ["", "  ", "nan", "None", "N/A", "?", "—", "...", r"\boxed{}", r"\text{}", r"\frac{1}{"]
)
def test_math_refuses_a_reference_that_is_missing(answer):
    with pytest.raises(ValueError, match="is no mathematical expression"):
        math(r"\boxed{1}", answer)


@pytest.mark.parametrize(
    "solution",
    [
        "The answer is 5",
        "Since he ate three of them seven apples are left on the table",
    ],
)
def test_a_solution_that_states_no_final_answer_is_not_equal_to_itself(solution):
    assert math(solution, solution) == 0


def test_math_without_math_verify_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"reward\.terms: 'math'.*asyncrl\[math\]"):
        resolve(RewardTerm("math"))


def test_a_function_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "reward_of_mine.py").write_text("def length(prompt, completion, answer):\n    return len(completion)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert resolve(RewardTerm("reward_of_mine:length"))({"prompt": "", "completion": "four", "answer": ""}) == 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "numerical",
            "unknown function 'numerical'; "
            "use numeric, math, format, shaped_numeric, code, judge, module:function or file.py:function",
        ),
        (":f", "unknown function"),
        ("json:", "unknown function"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("broken_reward:f", "ZeroDivisionError"),
        ("json:no_such_attribute", "module 'json' has no 'no_such_attribute'"),
        ("math:pi", "is a float, not a function"),
    ],
)
def test_a_function_that_cannot_be_resolved_names_the_key(tmp_path, monkeypatch, name, reason):
    (tmp_path / "broken_reward.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=rf"reward\.terms: .*{reason}"):
        resolve(RewardTerm(name))
