"""What a data section may say beside the choices and ranges of its keys."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from pathlib import Path

from asyncrl.config.data import MIXTURE, TEMPLATE_CHOICES, DataConfig, MixtureSet


def data_problems(data: DataConfig) -> list[str]:
    """One line for each problem, with the key and the fix."""
    return _template_problems(data) + _mixture_problems(data)


def _template_problems(data: DataConfig) -> list[str]:
    if data.chat_template in TEMPLATE_CHOICES or Path(data.chat_template).is_file():
        return []
    near = difflib.get_close_matches(data.chat_template, TEMPLATE_CHOICES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return [f"data.chat_template={data.chat_template!r} is none of {', '.join(TEMPLATE_CHOICES)}, and no file{hint}"]


def _mixture_problems(data: DataConfig) -> list[str]:
    uses = [key for key, source in (("data.train", data.train), ("data.eval", data.eval)) if source == MIXTURE]
    if uses and not data.mixture:
        example = "[{name: gsm8k, path: data/gsm8k, weight: 2}, {name: math, path: data/math}]"
        return [f"{uses[0]}=mixture needs data.mixture, such as {example}"]
    if data.mixture and not uses:
        return ["data.mixture has no effect without data.train=mixture; set it or leave data.mixture out"]
    problems = []
    for name, count in Counter(each.name for each in data.mixture).items():
        if count > 1:
            problems.append(f"data.mixture: {count} data sets are called {name!r}; give each a name of its own")
    return problems + [problem for number, each in enumerate(data.mixture) for problem in _set_problems(number, each)]


def _set_problems(number: int, data_set: MixtureSet) -> list[str]:
    problems = []
    key = f"data.mixture[{number}]"
    if not re.fullmatch(r"[\w.-]+", data_set.name):
        problems.append(f"{key}.name={data_set.name!r}: metrics carry it; use letters, digits and . _ -")
    if not (math.isfinite(data_set.weight) and data_set.weight > 0):
        problems.append(f"{key}.weight={data_set.weight} of {data_set.name} must be above 0; leave the data set out")
    for name, source in (("path", data_set.path), ("eval", data_set.eval)):
        if source in (MIXTURE, "environment"):
            problems.append(f"{key}.{name}={source}: name a file, a folder, a data set of the hub or arithmetic")
    return problems
