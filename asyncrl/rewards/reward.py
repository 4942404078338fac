"""One reward function of the configuration, called with the arguments that it names."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from asyncrl.errors import ConfigError

_OF_THE_COMPLETION = frozenset({"completion", "tokens"})
_OF_THE_ROW = frozenset({"prompt", "messages", "answer"})

_BATCHED = {"completions": "completion", "prompts": "prompt", "completion_ids": "tokens", "completions_ids": "tokens"}
"""What TRL hands to a reward function, which scores a batch, and what stands for it here."""


@dataclass(frozen=True)
class Reward:
    """A function, sync or async, and what it takes."""

    name: str
    """As in reward.terms."""
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]

    @property
    def takes_every_column(self) -> bool:
        return any(parameter.kind is Parameter.VAR_KEYWORD for parameter in self.parameters)

    @property
    def columns(self) -> dict[str, bool]:
        """Columns of the data that it takes by name → whether it has no default for them."""
        return {
            parameter.name: parameter.default is Parameter.empty
            for parameter in self._named()
            if parameter.name not in _OF_THE_COMPLETION | _OF_THE_ROW
        }

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """What the function returns for these values; a coroutine is run to its end, in an event loop of its own."""
        positional, keywords = [], {}
        for parameter in self._named():
            if parameter.name not in values:
                if parameter.default is Parameter.empty:
                    raise KeyError(
                        f"{self.name} asks for {parameter.name!r}, which this row does not have; it has "
                        f"{', '.join(values)}"
                    )
                continue
            if parameter.kind is Parameter.POSITIONAL_ONLY:
                positional.append(values[parameter.name])
            else:
                keywords[parameter.name] = values[parameter.name]
        if self.takes_every_column:
            keywords |= {name: value for name, value in values.items() if name not in keywords}
        result = self.function(*positional, **keywords)
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    def _named(self) -> list[Parameter]:
        return [one for one in self.parameters if one.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)]


def reward_of(name: str, function: Callable[..., Any]) -> Reward:
    """The function with its signature read.

    Raises:
        ConfigError: the signature cannot be read, or is that of a function which scores a batch.
    """
    try:
        parameters = tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"reward.terms: {name!r}: its arguments cannot be read ({error}); wrap it in a def"
        ) from error
    batched = [parameter.name for parameter in parameters if parameter.name in _BATCHED]
    if batched:
        instead = ", ".join(f"{one} → {_BATCHED[one]}" for one in batched)
        raise ConfigError(
            f"reward.terms: {name!r} takes {', '.join(batched)}, as TRL's functions, which score a batch; a function "
            f"here scores one completion and returns one number ({instead}), such as def score(completion, answer)"
        )
    return Reward(name, function, parameters)
