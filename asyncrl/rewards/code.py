"""The reward `code`: the completion is a Python program, the answer says what it must do. Each runs in a sandbox.

answer        a test, as text: Python that is run after the program, in its namespace; it must raise nothing
              or cases: a list of {"input", "output"}, or {"inputs": [...], "outputs": [...]}; standard input and output
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from asyncrl.rewards.sandbox.run import Limits, run

CODE = "code"

_FENCED = re.compile(r"^```[^\n`]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_WITH_TEST = """\
import json, os, sys
given = json.load(sys.stdin)
namespace = {"__name__": "__main__"}
exec(compile(given["program"], "answer.py", "exec"), namespace)
exec(compile(given["test"], "test.py", "exec"), namespace)
sys.stdout.flush()
os.write(1, given["passed"].encode())
"""


class Code:
    """1.0 if the program does what the answer says, within the limits; else 0.0.

    Args:
        limits: as `Limits`.

    Raises:
        TypeError, ValueError: a limit is unknown or impossible.
    """

    def __init__(self, **limits: Any) -> None:
        self.limits = Limits(**limits)
        for name, value in vars(self.limits).items():
            if name != "isolated" and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name}={value!r} must be a number above 0")

    def __call__(self, completion: str, answer: Any) -> float:
        """Raises ValueError: the answer is neither a test nor cases."""
        program = program_in(completion)
        if isinstance(answer, str):
            return float(self._passes(program, answer))
        return float(all(self._maps(program, given, due) for given, due in _cases(answer)))

    def _passes(self, program: str, test: str) -> bool:
        """A program that ends early does not pass: what it must print is drawn anew, and printed after the test."""
        passed = secrets.token_hex(16)
        given = json.dumps({"program": program, "test": test, "passed": passed})
        return passed in run(_WITH_TEST, given, self.limits).output

    def _maps(self, program: str, given: str, due: str) -> bool:
        ended = run(program, given, self.limits)
        return ended.exit_code == 0 and _lines(ended.output) == _lines(due)


def program_in(completion: str) -> str:
    """The last fenced block, or the whole completion."""
    blocks = _FENCED.findall(completion)
    return str(blocks[-1]) if blocks else completion


def _cases(answer: Any) -> Iterator[tuple[str, str]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(answer, Mapping) and {"inputs", "outputs"} <= set(answer):
        pairs = list(zip(answer["inputs"], answer["outputs"], strict=True))
    elif isinstance(answer, list):
        pairs = [(case.get("input"), case.get("output")) for case in answer if isinstance(case, Mapping)]
    if not pairs or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ValueError(
            'the answer is neither a test as text nor cases: [{"input": text, "output": text}, …] or '
            f'{{"inputs": [text, …], "outputs": [text, …]}}: {answer!r:.200}'
        )
    yield from pairs


def _lines(text: str) -> list[str]:
    """Without spaces at their ends, and without empty lines at the end of all."""
    return [line.rstrip() for line in text.rstrip().split("\n")]
