"""The libraries that come with the `models` extra: asked for when they are needed, and missed in one line."""

from __future__ import annotations

import importlib
from typing import Any

from worldkv.errors import ConfigError

INSTALL = "pip install -e '.[models]' -c constraints.txt"
"""In the clone; the pins are those that the tests run with."""


def library(name: str, purpose: str) -> Any:
    """A module of an optional library. Raises ConfigError where it is not installed, saying what for."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as fault:
        missing = fault.name or name
        raise ConfigError(f"{purpose} needs {missing}, which is not installed: {INSTALL}") from None
