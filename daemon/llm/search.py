"""A search through the files, as a process of its own: an expression may run for ever, or grow.

``python -P -S -m daemon.llm.search`` in the folder; the request, one JSON object, comes on standard
input, the hits go to standard output. Whoever starts it ends it when it takes too long.
"""

from __future__ import annotations

import json
import re
import resource
import stat
import sys
from collections.abc import Iterator

from daemon.llm.files import Files, Refused

MEMORY = 1 << 30  # bytes of address space
LINE = 240  # characters of a line that are shown
FILE = 4 << 20  # bytes of a file that is looked into


def hits(files: Files, path: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """``path:line: text`` of each line in which a match begins, file by file."""
    for name in _files(files, path):
        try:
            data = files.load(name)
        except Refused:
            continue
        text = data.decode(errors="replace")
        line, at, shown = 1, 0, 0
        for match in pattern.finditer(text):
            line += text.count("\n", at, match.start())
            at = match.start()
            if line == shown:
                continue
            shown = line
            begin = text.rfind("\n", 0, at) + 1
            end = text.find("\n", at)
            yield f"{name}:{line}: {text[begin : end if end >= 0 else None][:LINE].rstrip()}"


def _files(files: Files, path: str) -> Iterator[str]:
    parts = files.parts(path)
    try:
        for found in files.entries(path):
            if stat.S_ISREG(found.mode) and found.size <= FILE:
                yield found.path
    except Refused:
        files.load(path)  # a file, or Refused
        yield "/".join(parts)


def main() -> int:
    """Answer the request on standard input; 1 and the reason where it is refused."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    request = json.loads(sys.stdin.read())
    expression = re.escape(request["pattern"]) if request["literal"] else request["pattern"]
    flags = re.MULTILINE | (re.IGNORECASE if request["ignore_case"] else 0)
    try:
        pattern = re.compile(expression, flags)
        found = 0
        for each in hits(Files("."), request["path"], pattern):
            found += 1
            if found > request["most"]:
                print(f"[more than {request['most']}: search for something rarer]")  # noqa: T201  # a command
                break
            print(each, flush=True)  # noqa: T201  # what was found counts, if it is ended
        if not found:
            print("[no match]")  # noqa: T201  # a command
    except (re.error, OverflowError, RecursionError) as error:
        print(f"the expression is not understood: {error}; or set literal")  # noqa: T201
        return 1
    except MemoryError:
        print("the expression needs too much memory")  # noqa: T201  # a command
        return 1
    except Refused as refused:
        print(refused)  # noqa: T201  # a command
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
