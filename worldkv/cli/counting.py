"""Numbers of things, as people say them."""

from __future__ import annotations


def count(number: int, thing: str) -> str:
    """`1 fault`, `2 faults`; `thing` forms its plural with an s."""
    return f"{number} {thing}" + ("s" if number != 1 else "")
