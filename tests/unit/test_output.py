"""Tables, colours and JSON for people's terminals."""

from __future__ import annotations

import io
import json

import pytest

from daemon.fleet.output import Style, as_json, table, width


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """As said."""
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "colour"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colour_is_for_terminals_and_never_with_no_color(
    stream: io.StringIO, environ: dict[str, str], *, colour: bool
) -> None:
    """A pipe, NO_COLOR and a dumb terminal get plain text."""
    assert Style.of(stream, environ).colour is colour


def test_columns_are_aligned_by_what_they_take_on_a_screen() -> None:
    """Wide characters count twice, combining ones not at all; empty columns are left out."""
    rows = [["日本", "", "x"], ["e\u0301", "", "y"]]
    lines = table(["id", "none", "title"], rows).splitlines()
    assert lines == ["id    title", "日本  x", "e\u0301     y"]


def test_one_column_gives_way_on_a_narrow_screen() -> None:
    """No line is longer than the screen is wide, as long as the column can shrink."""
    text = table(["id", "title"], [["T1", "x" * 100]], Style(columns=40), shrink=1)
    assert max(width(line) for line in text.splitlines()) == 40
    assert "…" in text


def test_json_holds_no_control_character() -> None:
    """Not even those that JSON itself would allow raw."""
    text = as_json(["\x7f\x9b\x1b\u202e"])
    assert text.isascii()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert json.loads(text) == ["\x7f\x9b\x1b\u202e"]
