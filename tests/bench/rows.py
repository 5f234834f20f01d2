"""A line of the table, and the table."""

from __future__ import annotations

from typing import NamedTuple


class Skipped(Exception):  # it is no error
    """A part that cannot be measured on this machine; its text names what is missing."""


class Row(NamedTuple):
    """One figure. The goal is for its ratio to the reference, or for itself where that is None."""

    figure: str
    value: float
    unit: str
    reference: float | None = None
    goal: float | None = None
    at_least: bool = False  # of a rate more is better, of anything else less

    def cells(self) -> list[str]:
        against, ratio, goal, word = "", "", "", ""
        if self.reference is not None:
            against, ratio = f"{self.reference:.1f} {self.unit}", f"{self.judged():.2f}"
        if self.goal is not None:
            goal = f"{'>=' if self.at_least else '<='} {self.goal:g}"
            word = "met" if self.met() else "MISSED"
        return [self.figure, f"{self.value:.1f} {self.unit}", against, ratio, goal, word]

    def judged(self) -> float:
        return self.value if self.reference is None else self.value / self.reference

    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.judged() >= self.goal if self.at_least else self.judged() <= self.goal


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, its columns aligned."""
    head = ["figure", "measured", "reference", "ratio", "goal", ""]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    made = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    return "\n".join([made[0], rule, *made[1:]])
