"""The kinds of values that keys of a role config take, each in words and as JSON Schema."""

from __future__ import annotations

from typing import Any, NamedTuple

YEAR = 31_536_000  # seconds; no time of a config is longer
NAME = "[a-z][a-z0-9-]{0,31}"  # of roles and of unit prefixes: they become parts of unit names


class Kind(NamedTuple):
    """What values a key takes.

    ``words`` says it to a person, ``schema`` to a program (JSON Schema). A mapping has either
    ``keys``, the declared ones, or ``values``, the kind under any name that matches ``names``; a
    list has ``items``. ``later`` are values that a coming version takes.
    """

    words: str
    schema: dict[str, Any]
    keys: tuple[Key, ...] = ()
    values: Kind | None = None
    names: str = ""
    items: Kind | None = None
    later: tuple[str, ...] = ()
    hint: str = ""
    secret: bool = False  # never shown in messages


class Key(NamedTuple):
    """One key. ``default`` None is unset; ``shown`` is how the reference words the default."""

    name: str
    kind: Kind
    default: Any
    meaning: str
    shown: str = ""


def text(words: str, pattern: str = r"[^\u0000-\u001f\u007f]+", **more: Any) -> Kind:
    """A string of one line, or of the pattern."""
    return Kind(words, {"type": "string", "pattern": f"^(?:{pattern})$"}, **more)


def number(words: str, kind: str, **bounds: float) -> Kind:
    """A number within bounds (JSON Schema's)."""
    return Kind(words, {"type": kind, **bounds})


def list_of(words: str, items: Kind, least: int = 0, hint: str = "") -> Kind:
    """A list with at least so many items."""
    return Kind(words, {"type": "array", "minItems": least}, items=items, hint=hint)


def choice(*values: str, later: tuple[str, ...] = (), hint: str = "") -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(values)}", {"enum": list(values)}, later=later, hint=hint)


def mapping(words: str, *keys: Key) -> Kind:
    """A mapping of declared keys."""
    return Kind(words, {"type": "object"}, keys=keys)


QUOTE = "write it in quotes"
FLAG = Kind("true or false", {"type": "boolean"})
PATH = text("a path")
WORD = text("a plain word", "[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", hint=QUOTE)
COUNT = number("a whole number, 0 or more", "integer", minimum=0, maximum=1_000_000)
POSITIVE = number("a whole number, 1 or more", "integer", minimum=1, maximum=1_000_000)
SECONDS = number("a number of seconds, 0 or more", "number", minimum=0, maximum=YEAR)
DURATION = number("a number of seconds above 0", "number", exclusiveMinimum=0, maximum=YEAR)
ARGUMENT = text("a string", r"[^\u0000]*", hint=QUOTE)
ARGUMENTS = list_of("a list of strings", ARGUMENT)
COMMAND = list_of(
    "a list of a program and its arguments",
    ARGUMENT,
    1,
    "no shell is involved: write [program, argument, ...], or [sh, -c, '...']",
)
GATES_HINT = 'write each gate as a list: [["pytest", "-q"]]'
GATE = list_of("a list of a program and its arguments", ARGUMENT, 1, GATES_HINT)
VARIABLE = "(?!ROLECALL_)[A-Za-z_][A-Za-z0-9_]*"
VARIABLE_WORDS = "the name of an environment variable"
VARIABLE_HINT = "letters, digits and _, no digit first; ROLECALL_* are set by us"
