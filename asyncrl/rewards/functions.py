r"""The built-in reward functions, pure, and how a name of reward.terms becomes one. A score ≥ 1 means correct.

A function may raise on an answer that it cannot use; the pool then fails that completion, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from asyncrl.config.schema import RewardTerm
from asyncrl.config.user_code import import_attribute, import_module
from asyncrl.errors import ConfigError
from asyncrl.rewards.code import CODE, Code
from asyncrl.rewards.final_answer import ends_in_final_answer, final_number
from asyncrl.rewards.judge_config import JUDGE, judge_config, prompt_parameters
from asyncrl.rewards.math_answer import equals_reference
from asyncrl.rewards.reward import Reward, reward_of
from asyncrl.rewards.sandbox.run import check_sandbox


def numeric(completion: str, answer: str) -> float:
    r"""1.0 if the completion's final number equals the answer's exactly, else 0.0.

    The final number stands after `####`, in the last `\boxed{}`, or is the whole completion (`final_answer.py`: GSM8K's
    strict match, no fall-back to the last number in passing).

    Raises:
        ValueError: the answer states no number.
    """
    return float(final_number(completion) == _reference(answer))


def format_score(completion: str) -> float:
    r"""1.0 if the completion ends in a well-formed final answer, `#### number` or `\boxed{number}`, else 0.0."""
    return float(ends_in_final_answer(completion))


def shaped_numeric(completion: str, answer: str) -> float:
    """Partial credit for models too small to solve the task: 1 if correct, else 0.2·form + 0.3·closeness.

    form is 1 if the completion ends in a well-formed final answer, else 0. closeness is 1 / (1 + |x − a| / max(1, |a|))
    of its final number x and the answer a, 0 when it states none. So a score lies in [0, 0.5] or is exactly 1.

    Raises:
        ValueError: the answer states no number.
    """
    reference, number = _reference(answer), final_number(completion)
    if number == reference:
        return 1.0
    form = 0.2 * ends_in_final_answer(completion)
    if number is None:
        return form
    distance = abs(number - reference) / max(Fraction(1), abs(reference))
    return form + 0.3 * float(1 / (1 + distance))


def math(completion: str, answer: str) -> float:
    """1.0 if math-verify finds the completion's answer equal to the reference (LaTeX and expressions), else 0.0.

    Raises:
        ValueError: math-verify reads nothing from the answer.
    """
    return float(equals_reference(completion, answer))


def code(completion: str, answer: Any) -> float:
    """1.0 if the completion's Python program does what the answer says, in a sandbox; else 0.0 (`rewards/code.py`)."""
    return Code()(completion, answer)


BUILT_IN: dict[str, Callable[..., float]] = {
    "numeric": numeric,
    "math": math,
    "format": format_score,
    "shaped_numeric": shaped_numeric,
    CODE: code,
}


def resolve(term: RewardTerm) -> Reward:
    """The built-in reward of that name, `module:function` or `path/to/file.py:function`.

    Raises:
        ConfigError: unknown name, module or file that does not import, attribute that is missing or not callable, a
            signature that cannot be served, arguments that are refused, or `math` without math-verify.
    """
    name = term.function
    if name == JUDGE:
        return Reward(name, _asked_elsewhere, prompt_parameters(judge_config(term.args)))
    if name == CODE:
        return reward_of(name, _code(term.args))
    if name in BUILT_IN and term.args:
        raise ConfigError(f"reward.terms: {name!r} takes no args; {JUDGE}, {CODE} and classes of your own do")
    if name == "math":
        import_module("reward.terms", name, "math_verify", "install the extra: pip install 'asyncrl[math]'")
    if name in BUILT_IN:
        return reward_of(name, BUILT_IN[name])
    found = import_attribute("reward.terms", name, "function", ", ".join([*BUILT_IN, JUDGE]))
    if term.args:
        try:
            found = found(**term.args)
        except Exception as error:  # a user's class may raise anything
            raise ConfigError(f"reward.terms: {name!r} with args={term.args} failed: {error!r}") from error
    return reward_of(name, found)


def _code(args: dict[str, Any]) -> Code:
    try:
        found = Code(**args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward.terms: {CODE}: args: {error}; they are in docs/rewards.md") from error
    check_sandbox(found.limits.isolated)
    return found


def _asked_elsewhere() -> float:
    raise AssertionError("a judge is asked by the pool, not in a reward process")


def _reference(answer: str) -> Fraction:
    number = final_number(answer)
    if number is None:
        raise ValueError(f"the answer {answer!r} states no number")
    return number
