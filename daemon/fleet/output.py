"""How the operator's side prints: tables, colour, JSON. Whatever came from a file is escaped."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import IO, Any

from daemon.log import escape

__all__ = [
    "COLOURS",
    "Style",
    "as_json",
    "error_text",
    "escape",
    "fit",
    "shown",
    "table",
    "value_text",
    "width",
]

COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36, "dim": 2, "bold": 1}
GAP = "  "
SHORTEST_LAST_COLUMN = 20  # a narrower terminal wraps instead


class Style:
    """What a stream may be sent: colours, and how wide a line may be (None: any width)."""

    def __init__(self, *, colour: bool = False, columns: int | None = None) -> None:
        self.colour, self.columns = colour, columns

    @classmethod
    def of(cls, stream: IO[str], environ: Mapping[str, str] = os.environ) -> Style:
        """Colour and a line's width for a terminal; neither for a file or a pipe.

        NO_COLOR, when set to anything, and TERM=dumb switch the colours off (no-color.org).
        """
        if not stream.isatty():
            return cls()
        plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") in (None, "", "dumb")
        return cls(colour=not plain, columns=shutil.get_terminal_size().columns)

    def paint(self, text: str, colour: str | None) -> str:
        """The text in that colour, where the stream may have colours."""
        if not (self.colour and colour and text):
            return text
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def as_json(value: Any) -> str:
    """Two-space JSON in ASCII: no control character of a title reaches a terminal."""
    return json.dumps(value, indent=2, ensure_ascii=True).replace("\x7f", "\\u007f")


def error_text(error: object) -> str:
    """An error for a terminal: its lines as they are, all else that controls one escaped."""
    return "\n".join(escape(line) for line in str(error).split("\n"))


def shown(text: str, stream: IO[str]) -> str:
    """A whole text as it is for a file or a pipe; its control characters escaped for a terminal.

    What no UTF-8 can hold is escaped for both, as agents get it.
    """
    text = text.encode(errors="backslashreplace").decode()
    lines = text.split("\n")
    return "\n".join(map(escape, lines)) if stream.isatty() else text


def value_text(value: Any) -> str:
    """One value of a task for a person: a string as it is, all else as JSON; escaped."""
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def fit(text: str, columns: int) -> str:
    """The text, cut where it would take more columns of a terminal."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    style: Style | None = None,
    *,
    colours: Sequence[Mapping[int, str]] = (),
    shrink: int | None = None,
) -> str:
    """Aligned columns under a header; every cell is escaped.

    ``colours`` names, per row, the colour of a column; ``shrink`` is the column that gives way
    where the terminal is too narrow. Columns that are empty throughout are left out.
    """
    style = style or Style()
    cells = [["" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    kept = [i for i in range(len(header)) if any(row[i] for row in cells)] or [0]
    widths = {i: max(width(line[i]) for line in [list(header), *cells]) for i in kept}
    if style.columns and shrink in widths:
        others = sum(size + len(GAP) for i, size in widths.items() if i != shrink)
        room = max(SHORTEST_LAST_COLUMN, style.columns - others)
        widths[shrink] = min(widths[shrink], room)

    def line(row: Sequence[str], paint: Mapping[int, str]) -> str:
        parts = []
        for i in kept:
            text = fit(row[i], widths[i])
            padding = "" if i == kept[-1] else " " * (widths[i] - width(text))
            parts.append(style.paint(text, paint.get(i)) + padding)
        return GAP.join(parts).rstrip()

    head = line(list(header), dict.fromkeys(kept, "bold"))
    body = [line(row, colours[n] if n < len(colours) else {}) for n, row in enumerate(cells)]
    return "\n".join([head, *body])
