from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asyncrl.api.reward_names import reward_name
from asyncrl.config.schema import RewardTerm
from asyncrl.errors import ConfigError
from asyncrl.rewards.functions import numeric
from asyncrl.rewards.sample import Question, Sample
from asyncrl.rewards.worker import score_some, start

OUTSIDE = """
def near(prompt, completion, answer):
    return float(completion == answer)
"""


def test_a_function_of_a_package_is_named_by_its_module() -> None:
    assert reward_name(numeric) == "asyncrl.rewards.functions:numeric"


def test_a_function_of_a_module_outside_of_a_package_is_named_by_its_file_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "near_reward.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    import near_reward

    name = reward_name(near_reward.near)
    assert name == f"{tmp_path / 'near_reward.py'}:near"
    start([RewardTerm(name)])
    assert score_some(Question("1+1=", "2"), [Sample("2")], [0], 1.0) == [[1.0]]


def test_a_function_of_a_script_is_named_by_the_scripts_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(OUTSIDE + "from asyncrl.api.reward_names import reward_name\nprint(reward_name(near))\n")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{script}:near"


def test_a_function_that_was_typed_in_is_refused_with_the_way_out() -> None:
    program = OUTSIDE + "from asyncrl.api.reward_names import reward_name\nreward_name(near)\n"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "rewards: near is defined in no file" in result.stderr
    assert "%%writefile" in result.stderr


def closure() -> object:
    def inner(prompt: str, completion: str, answer: str) -> float:
        return 1.0

    return inner


class Judge:
    def score(self, prompt: str, completion: str, answer: str) -> float:
        return 1.0


@pytest.mark.parametrize("function", [lambda prompt, completion, answer: 1.0, closure(), Judge().score, Judge(), len])
def test_what_another_process_cannot_import_is_refused(function: object) -> None:
    with pytest.raises(ConfigError, match=r"rewards: .* (cannot be imported|is defined in no file)"):
        reward_name(function)  # type: ignore[arg-type]
