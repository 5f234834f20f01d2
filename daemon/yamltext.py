"""YAML into plain values that know the file and line they came from.

Standard YAML 1.1 as Ansible reads it, with anchors, aliases and merge keys, and without what would
surprise in a config: duplicate keys, tags of one's own, clock times that are numbers, documents
that grow without bound. A text that is JSON is read as JSON, again as Ansible does.
"""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any, NamedTuple

import yaml

from daemon.errors import Problem

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_VALUES = 50_000  # aliases counted each time; a thousand roles need fewer

_TAG = "tag:yaml.org,2002:"
_ORDINARY = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp")}


class Placed(NamedTuple):
    """A value, and ``file:line`` of it and of its key.

    ``data`` is None, a bool, int, float or str, a list of Placed, or a dict of str to Placed.
    """

    data: Any
    where: str
    key: str = ""


WRONG = object()  # the data of a value that was reported and counts as unset from there on


def plain(value: Placed) -> Any:
    """The value without its places."""
    if isinstance(value.data, dict):
        return {key: plain(each) for key, each in value.data.items()}
    if isinstance(value.data, list):
        return [plain(each) for each in value.data]
    return None if value.data is WRONG else value.data


def shown(path: str) -> str:
    """A path as messages show it: relative where it lies below the current directory."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def read(path: str, problems: list[Problem]) -> Placed | None:
    """The one document of a file, {} where it is empty; None where nothing can be read.

    What is wrong is added to ``problems``.
    """
    name = shown(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                problems.append(Problem(name, "is not a regular file"))
                return None
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.append(Problem(name, f"cannot be read: {error.strerror}"))
        return None
    if len(content) > MAX_BYTES:
        problems.append(Problem(name, "is larger than 1 MiB, which no config needs"))
        return None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(Problem(f"{name}:{line}", "is not UTF-8 text"))
        return None
    return parse(text, name, problems)


def parse(text: str, name: str, problems: list[Problem]) -> Placed | None:
    """The same of a text; ``name`` is the file's in messages."""
    if text.startswith("$ANSIBLE_VAULT"):
        problems.append(Problem(f"{name}:1", *_VAULT))
        return None
    is_json = _is_json(text)
    try:
        loader = _Loader(_json_as_yaml(text) if is_json else text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"is not YAML: character {error.character!r:.12} is not allowed"
        problems.append(Problem(f"{name}:{line}", what))
        return None
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax(error, name, text))
        return None
    except RecursionError:
        problems.append(Problem(name, _TOO_DEEP))
        return None
    found = _Conversion(name, problems, is_json=is_json)
    try:
        return Placed({}, f"{name}:1") if node is None else found.value(node)
    except _TooMuch as error:
        problems.append(Problem(error.where, str(error)))
        return None


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_as_yaml(text: str) -> str:
    """The JSON text as YAML of the same lines and values, but for numbers.

    Its tabs stand between values; characters above 0xffff may be escaped as two; and YAML takes
    some that stand in its strings for ends of lines, or for no characters at all.
    """
    text = _PAIR.sub(lambda found: json.loads(f'"{found[0]}"') if found[1] else found[0], text)
    return _NO_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\t", " "))


_PAIR = re.compile(r"\\(?:(u[dD][89abAB]..\\u[dD][c-fC-F]..)|.)")
_NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufffe\uffff]")
_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep"
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ODD = {"int": "a number to the base of 60", "float": "a number to the base of 60"}
_ODD["timestamp"] = "a point in time"
_VAULT = (
    "Ansible Vault is not supported",
    "keep secrets in an env_file of the role, readable by its owner only",
)
TEMPLATE = (
    "templates ({{ }}) are not supported",
    "write the value itself; aliases (*name) and merge keys (<<) are understood",
)


class _Loader(yaml.SafeLoader):
    """Composes nodes only, and not without bound."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            at = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, at)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _syntax(error: yaml.MarkedYAMLError, name: str, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark else name
    if error.problem == _TOO_DEEP:
        return Problem(where, _TOO_DEEP)
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith(("<<<<<<< ", ">>>>>>> ")):
            return Problem(f"{name}:{number}", "holds a git conflict", "resolve it")
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    tab = "\t" in line[: len(line) - len(line.lstrip())]
    what = ", ".join(each for each in (error.context, error.problem) if each)
    hint = "indent with spaces: YAML allows no tabs there" if tab else ""
    return Problem(where, f"is not YAML: {what}", hint)


class _TooMuch(Exception):
    def __init__(self, what: str, where: str) -> None:
        super().__init__(what)
        self.where = where


class _Conversion:
    """Nodes of one file into Placed values."""

    def __init__(self, name: str, problems: list[Problem], *, is_json: bool) -> None:
        self.name = name
        self.problems = problems
        self.is_json = is_json
        self.count = 0
        self.scalars = yaml.constructor.SafeConstructor()

    def where(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def problem(self, node: yaml.Node, what: str, hint: str = "") -> None:
        self.problems.append(Problem(self.where(node), what, hint))

    def value(self, node: yaml.Node, depth: int = 0) -> Placed:
        self.count += 1
        if self.count > MAX_VALUES:
            what = f"holds more than {MAX_VALUES} values, aliases counted each time"
            raise _TooMuch(what, self.where(node))
        if depth > MAX_DEPTH:
            raise _TooMuch("an alias makes it endless, or nested too deep", self.where(node))
        where = self.where(node)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            if any(isinstance(key, yaml.MappingNode) for key, _ in node.value):
                self.problem(node, *TEMPLATE)  # {{ x }} without quotes is a mapping as a key
                return Placed(WRONG, where)
            return Placed(self.mapping(node, depth), where)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return Placed([self.value(each, depth + 1) for each in node.value], where)
        if isinstance(node, yaml.ScalarNode) and self.is_json and node.style is None:
            return Placed(json.loads(node.value), where)  # 1e3 is a number there, and a text here
        if isinstance(node, yaml.ScalarNode) and node.tag in _ORDINARY:
            return Placed(self.scalar(node), where)
        if isinstance(node, yaml.ScalarNode) and node.tag in {f"{_TAG}value", f"{_TAG}merge"}:
            return Placed(node.value, where)  # a lone "=" or "<<" as a value
        if node.tag == "!vault":
            self.problem(node, *_VAULT)
        else:
            tag = node.tag.replace(_TAG, "!!")
            self.problem(node, f"the tag {tag} is not supported", "write a plain value")
        return Placed(WRONG, where)

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
            self.problem(node, "half a character (a lone surrogate) stands there")
            return WRONG
        kind = node.tag.removeprefix(_TAG)
        if kind == "timestamp" and _DATE.fullmatch(text):
            # A day is its text, in Ansible's JSON too: but one that is none is an error there.
            return WRONG if self._constructed(node) is WRONG else text
        if kind == "timestamp" or (kind in {"int", "float"} and ":" in text):
            # YAML 1.1 reads 1:30 as ninety; nobody means that here.
            what = f"{text[:40]} is read as {_ODD[kind]}"
            self.problem(node, what, f'write "{text[:40]}" if that text is meant')
            return WRONG
        return self._constructed(node)

    def _constructed(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.scalars.construct_object(node)
        except (ValueError, LookupError, AttributeError, OverflowError, yaml.YAMLError):
            kind = node.tag.replace(_TAG, "!!")
            self.problem(node, f"{node.value[:40]!r} cannot be read as {kind}")
            return WRONG

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Placed]:
        if depth > MAX_DEPTH:
            raise _TooMuch("a merge key makes it endless", self.where(node))
        own: dict[str, Placed] = {}
        merged: dict[str, Placed] | None = None
        for key, value in node.value:
            if key.tag == f"{_TAG}merge":
                if merged is not None:
                    self.problem(key, "a second merge key (<<)", "write one: <<: [*a, *b]")
                merged = self.merge(value, depth)
            elif not isinstance(key, yaml.ScalarNode):
                self.problem(key, "a key must be a plain word")
            elif key.tag != f"{_TAG}str":
                kind = key.tag.removeprefix(_TAG)
                hint = f'quote it: "{key.value}"'
                self.problem(key, f"the key {key.value[:40]} is read as a YAML {kind}", hint)
            elif key.value in own:
                first = own[key.value].key.rpartition(":")[2]
                what = f'duplicate key "{key.value[:60]}"'
                self.problem(key, what, f"it is set on line {first} already: remove one")
            else:
                placed = self.value(value, depth + 1)
                own[key.value] = placed._replace(key=self.where(key))
        return {**(merged or {}), **own}

    def merge(self, node: yaml.Node, depth: int) -> dict[str, Placed]:
        """What a merge key brings: of several mappings, the earlier one wins."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Placed] = {}
        for part in reversed(parts):  # the order of what comes of it is PyYAML's, as in Ansible
            if isinstance(part, yaml.MappingNode):
                found |= self.mapping(part, depth + 1)
            else:
                self.problem(part, "a merge key (<<) takes a mapping, or a list of mappings")
        return found
