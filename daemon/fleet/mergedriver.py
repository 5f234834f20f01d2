"""The merge driver that git runs for the queue, and the command line that names it in a clone.

``python -m daemon.fleet.mergedriver %O %A %B %L %P``: the result takes the place of %A. Exit
status: 0 merged, 1 conflicts are left, 129 nothing was done. What cannot be merged task by task is
merged line by line, as git itself does it, and one line on stderr says why.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

from daemon import worktree
from daemon.errors import RolecallError
from daemon.fleet.mergetext import OURS, THEIRS
from daemon.fleet.merging import Merged, Unmergeable, merge
from daemon.log import escape
from daemon.queue import durable

ARGUMENTS = ("BASE", "OURS", "THEIRS", "MARKER_SIZE", "PATH")
CONFLICTS = 1
FAILED = 129  # beyond 128 a driver has crashed, says git's manual; git 2.39 sees a conflict
MOST_CONFLICTS = 127  # that git merge-file counts in its exit status; 255 is an error
LABELS = ("-L", OURS, "-L", "base", "-L", THEIRS)


def main(arguments: Sequence[str]) -> int:
    """Merge the files that git names, and say what is left to do."""
    if len(arguments) != len(ARGUMENTS) or not arguments[3].isdecimal():
        _say(f"usage: python -m daemon.fleet.mergedriver {' '.join(ARGUMENTS)}")
        return FAILED
    base, ours, theirs, size, path = arguments
    try:
        before = _content(ours)
        try:
            found = merge(_content(base), before, _content(theirs), size=int(size))
        except Exception as error:  # noqa: BLE001  # no fault of ours may cost a side its changes
            why = str(error) if isinstance(error, Unmergeable) else repr(error)
            _say(f"{path} is merged line by line: {why}")
            found = _line_by_line(base, ours, theirs, size) or Merged(before, ("all of it",))
        if found.data != before:
            aside = durable.write_aside(ours, found.data, like=os.stat(ours), sync=False)
            durable.put(aside.path, ours)
    except Exception as error:  # noqa: BLE001  # a traceback's exit status 1 would be a conflict
        why = error.problems[0].what if isinstance(error, RolecallError) else str(error)
        _say(f"{path} is not merged, what stands there is ours alone: {why}")
        return FAILED
    if found.conflicts:
        _say(f"{path}: left to you: {', '.join(found.conflicts)}")
    return CONFLICTS if found.conflicts else 0


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _line_by_line(base: str, ours: str, theirs: str, size: str) -> Merged | None:
    """What git makes of them; None where it takes them for no text."""
    command = ["git", "merge-file", "-p", f"--marker-size={size}", *LABELS, ours, base, theirs]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if not 0 <= done.returncode <= MOST_CONFLICTS:
        return None
    return Merged(done.stdout, ("what stands between markers",) if done.returncode else ())


def _say(what: str) -> None:
    print(f"rolecall: {escape(what)}", file=sys.stderr)  # noqa: T201  # a command line prints


def settings(python: str, checkout: str) -> dict[str, str]:
    """What the config of a clone is to say; git hands the command to sh, at the worktree's top.

    Where Python or the checkout is gone, git would keep our side and forget theirs: then git's own
    merge is called. A merge of several common ancestors keeps what those had in common, for a
    conflict within the base would leave us without a base to read.
    """
    program = os.path.join(checkout, "daemon", "fleet", "mergedriver.py")
    python, program, checkout = (
        shlex.quote(path).replace("%", "%%") for path in (python, program, checkout)
    )
    return {
        "merge.rolecall.name": "a queue of Rolecall, merged task by task",
        "merge.rolecall.driver": f"test -x {python} && test -f {program} ||"
        f" exec git merge-file --marker-size=%L {shlex.join(LABELS)} %A %O %B;"
        f" exec env PYTHONPATH={checkout} {python} -P -S -m daemon.fleet.mergedriver"
        " %O %A %B %L %P",
        "merge.rolecall.recursive": "binary",
    }


def configured(workspace: str) -> str:
    """The command line that the clone's config has for the driver; "" where it has none."""
    key = "merge.rolecall.driver"
    return worktree.git(workspace, "config", "--default", "", "--get", key).rstrip("\n")


def missing(line: str) -> list[str]:
    """The files that such a command line names, and that are not there."""
    try:
        words = shlex.split(line.replace("%%", "%"))
    except ValueError:
        return []
    return [word for word in words if os.path.isabs(word) and not os.path.exists(word)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
