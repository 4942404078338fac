"""`module:attribute` and `path/to/file.py:attribute` of the configuration: what users bring of their own.

It is imported from the config alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from asyncrl.errors import ConfigError


def import_attribute(key: str, name: str, attribute_kind: str, built_in: str) -> Any:
    """What `module:attribute` names, imported also from the working directory, or `path/to/file.py:attribute`.

    Args:
        key: of the configuration, for messages.
        attribute_kind: such as `function`.
        built_in: the names that could stand instead, for messages.

    Raises:
        ConfigError: not of that form, module that does not import, attribute that is missing or not callable.
    """
    origin, separator, attribute = name.rpartition(":")
    if not (origin and separator and attribute):
        raise ConfigError(
            f"{key}: unknown {attribute_kind} {name!r}; "
            f"use {built_in}, module:{attribute_kind} or file.py:{attribute_kind}"
        )
    if is_file_name(origin):
        module = import_file(key, name, Path(origin))
    else:
        search(os.getcwd())
        module = import_module(key, name, origin, "it must be installed or lie in the working directory")
    if not hasattr(module, attribute):
        raise ConfigError(f"{key}: {name!r}: module {origin!r} has no {attribute!r}")
    found = getattr(module, attribute)
    if not callable(found):
        raise ConfigError(f"{key}: {name!r} is a {type(found).__name__}, not a {attribute_kind}")
    return found


def is_file_name(origin: str) -> bool:
    """What stands before the colon names a file, not a module."""
    return origin.endswith(".py")


def import_module(key: str, name: str, module_name: str, hint: str) -> ModuleType:
    """Raises ConfigError, with the hint, when the module does not import."""
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        raise ConfigError(f"{key}: {name!r}: cannot import {module_name!r} ({error!r}); {hint}") from error


def import_file(key: str, name: str, path: Path) -> ModuleType:
    """The module of a file, once in a process; it may import its neighbours."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"{key}: {name!r}: there is no file {path}")
    module_name = f"{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"  # two files may be called alike
    if module_name in sys.modules:
        return sys.modules[module_name]
    search(str(path.parent))
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything while it is imported
        del sys.modules[module_name]
        raise ConfigError(f"{key}: {name!r}: {path} does not import: {type(error).__name__}: {error}") from error
    return module


def search(folder: str) -> None:
    """Modules are found there too, after those that are installed."""
    if folder not in sys.path:
        sys.path.append(folder)
