"""`module:attribute` of the configuration: what users bring of their own. It is imported from the config alone."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from asyncrl.errors import ConfigError


def import_attribute(key: str, name: str, attribute_kind: str, built_in: str) -> Any:
    """What `module:attribute` names, imported also from the working directory.

    Args:
        key: of the configuration, for messages.
        attribute_kind: such as `function`.
        built_in: the names that could stand instead, for messages.

    Raises:
        ConfigError: not of that form, module that does not import, attribute that is missing or not callable.
    """
    module_name, separator, attribute = name.partition(":")
    if not (module_name and separator and attribute):
        raise ConfigError(f"{key}: unknown {attribute_kind} {name!r}; use {built_in} or module:{attribute_kind}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    module = import_module(key, name, module_name, "it must be installed or lie in the working directory")
    if not hasattr(module, attribute):
        raise ConfigError(f"{key}: {name!r}: module {module_name!r} has no {attribute!r}")
    found = getattr(module, attribute)
    if not callable(found):
        raise ConfigError(f"{key}: {name!r} is a {type(found).__name__}, not a {attribute_kind}")
    return found


def import_module(key: str, name: str, module_name: str, hint: str) -> object:
    """Raises ConfigError, with the hint, when the module does not import."""
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(f"{key}: {name!r}: cannot import {module_name!r} ({error!r}); {hint}") from error
