"""The `worldkv` command. Each command lives in a module of its own and loads what it needs when it runs."""

from worldkv.cli.app import main

__all__ = ["main"]
