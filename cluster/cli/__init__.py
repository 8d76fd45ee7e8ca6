"""The whole `worldkv` command: the library's commands, with rollouts through Ray, jobs and clusters."""

from cluster.cli.app import main

__all__ = ["main"]
