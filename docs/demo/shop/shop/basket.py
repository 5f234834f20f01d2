"""What a customer buys, and what it costs. Amounts are whole cents."""

from collections.abc import Iterable
from typing import NamedTuple


class Line(NamedTuple):
    """One thing that is bought, so many of it."""

    name: str
    price: int
    quantity: int = 1


def total(lines: Iterable[Line]) -> int:
    """What all lines cost together."""
    return sum(line.price for line in lines)
