"""Commands that the model may run, and the search: what they get, and how they are ended."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from daemon.agents.llm import SETTINGS
from daemon.attempt import Attempt
from daemon.llm import commands as module
from daemon.llm.commands import Commands, Output, is_allowed, without_credentials
from daemon.llm.files import Files, Refused
from tests.workspace import PATIENCE


class Never:
    """No stop is asked."""

    fd = -1

    def asked(self) -> bool:
        return False


class Asked(Never):
    """A stop is asked already."""

    def asked(self) -> bool:
        return True


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    (tmp_path / "work").mkdir()
    (tmp_path / "run").mkdir()
    env = {"PATH": os.environ["PATH"]}
    return Commands(str(tmp_path / "work"), str(tmp_path / "run"), env, Never(), 1000)


def shell(commands: Commands, script: str, seconds: float = PATIENCE) -> Output:
    return commands.run(["sh", "-c", script], seconds)


def search(commands: Commands, pattern: str, seconds: float = PATIENCE, **more: Any) -> Output:
    request = {"pattern": pattern, "path": ".", "literal": False, "ignore_case": False, "most": 3}
    root = os.open(commands.cwd, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return commands.search(json.dumps({**request, **more}), seconds, root)
    finally:
        os.close(root)


def test_a_command_is_told_with_its_output(commands: Commands, tmp_path: Path) -> None:
    """Both of its streams in order, and its exit status; it runs in the folder, without input."""
    told = shell(commands, "echo a; echo b >&2; pwd; cat; exit 3")
    assert told == Output(f"a\nb\n{tmp_path}/work\n", "exit status 3")
    assert shell(commands, "kill -9 $$").ended == "signal 9"
    assert os.listdir(tmp_path / "run") == [], "its log is gone"


def test_long_output_is_told_by_its_ends(commands: Commands) -> None:
    """The beginning and the end count; how much is left out is said."""
    told = shell(commands, "echo first; head -c 100000 /dev/zero | tr '\\0' x; echo last")
    assert told.text.startswith("first\nxx")
    assert told.text.endswith("xxlast\n")
    assert "[99011 bytes are left out]" in told.text


def test_a_command_that_takes_too_long_is_ended_with_its_tree(commands: Commands) -> None:
    """What it started in another session, too."""
    told = shell(commands, "setsid sleep 975 & echo $!; sleep 974", 0.3)
    assert told.ended == "ended after 0.3 s: it took too long"
    assert not os.path.exists(f"/proc/{told.text.strip()}/environ")


def test_what_a_command_leaves_behind_is_ended(commands: Commands) -> None:
    """Nothing of it runs beside the next one."""
    told = shell(commands, "sleep 973 > /dev/null 2>&1 & echo $!")
    assert told.ended == ""
    assert not os.path.exists(f"/proc/{told.text.strip()}/environ")


def test_a_stop_ends_a_command(commands: Commands) -> None:
    """At once, whatever time it had."""
    commands.stop = Asked()
    assert "stopped" in shell(commands, "sleep 972").ended


def test_a_program_that_is_not_there_is_refused(commands: Commands) -> None:
    """With the reason; so is an argument that no program can be given."""
    with pytest.raises(Refused, match="No such file"):
        commands.run(["no-such-program"], PATIENCE)
    with pytest.raises(Refused, match="NUL"):
        commands.run(["echo", "\0"], PATIENCE)


def test_a_command_is_allowed_by_how_it_begins() -> None:
    """Argument by argument: a longer word is another word, and an empty entry allows nothing."""
    allowed = (("git", "diff"), ("pytest",), ())
    assert is_allowed(["git", "diff", "--stat"], allowed)
    assert is_allowed(["pytest"], allowed)
    for other in (["git"], ["git", "push"], ["pytest2"], ["/bin/pytest"], ["sh", "-c", "pytest"]):
        assert not is_allowed(other, allowed)
    assert not is_allowed([], allowed)


def test_commands_get_no_credentials() -> None:
    """Only what gates get, too: named things, the role's env and ours, but not our settings."""
    ours = {"ROLECALL_TASK_ID": "T1", "LC_ALL": "C", "CI": "1", "GIT_AUTHOR_NAME": "a"}
    others = {"OPENAI_API_KEY": "sk", "ROLECALL_LLM": "{}", "GIT_TOKEN": "x", "PYTHONPATH": "/"}
    found = without_credentials({**ours, **others, "PATH": "/bin"}, ["CI"])
    assert found == {**ours, "PATH": "/bin", "TERM": "dumb"}


def test_a_search_answers_with_lines(commands: Commands, tmp_path: Path) -> None:
    """Expressions that may span lines, plain text, either case; binaries are passed over."""
    work = tmp_path / "work"
    (work / "a.txt").write_text("one two\nthree two\nTWO (x)\n")
    (work / "b.bin").write_bytes(b"two\0")
    (work / ".git").mkdir()
    (work / ".git" / "config").write_text("two")
    assert search(commands, r"t\w+o").text == "a.txt:1: one two\na.txt:2: three two\n"
    assert search(commands, "two\\s+three").text == "a.txt:1: one two\n"
    assert search(commands, "^two", ignore_case=True).text == "a.txt:3: TWO (x)\n"
    assert search(commands, "(x)", literal=True, path="a.txt").text == "a.txt:3: TWO (x)\n"
    assert search(commands, "nothing").text == "[no match]\n"
    assert search(commands, ".", most=1).text.endswith(
        "[more than 1: search for something rarer]\n"
    )


def test_a_search_that_cannot_be_made_says_why(commands: Commands, tmp_path: Path) -> None:
    """A broken expression, a path that is not there, a link."""
    (tmp_path / "work" / "link").symlink_to(tmp_path)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"pattern": "("}, "not understood"),
        ({"pattern": "x", "path": "nowhere"}, "no such file"),
        ({"pattern": "x", "path": "link"}, "symbolic link"),
        ({"pattern": "x", "path": "../run"}, "'..'"),
    )
    for more, why in cases:
        told = search(commands, **more)
        assert told.ended == "exit status 1"
        assert why in told.text


def test_a_search_that_runs_for_ever_is_ended(commands: Commands, tmp_path: Path) -> None:
    """What it had found is told; an expression that backtracks without end harms nobody."""
    work = tmp_path / "work"
    (work / "a.txt").write_text("b" + "a" * 5000 + "c\n")
    told = search(commands, r"^b(a|aa)+$", 1.0)
    assert told.ended == "ended after 1 s: it took too long"
    told = search(commands, "(" * 5000)
    assert told.ended == "exit status 1"


def test_our_search_runs_without_site_packages(commands: Commands) -> None:
    """It starts in a moment, whatever else is installed."""
    code = "import sys, daemon.llm.search; print([m for m in sys.modules if 'pydantic' in m])"
    told = commands.run([sys.executable, "-P", "-S", "-c", code], PATIENCE, PYTHONPATH=module.OURS)
    assert told == Output("[]\n", "")


def test_a_search_stays_in_the_folder_that_was_opened(commands: Commands, tmp_path: Path) -> None:
    """Though a command has put another one in its place.

    Broken once by searching where the path led: it showed files of elsewhere.
    """
    work, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.txt").write_text("needle\n")
    (work / "a.txt").write_text("needle\n")
    files = Files(str(work))
    work.rename(tmp_path / "moved")
    work.symlink_to(elsewhere)
    request = {"pattern": "needle", "path": ".", "literal": True, "ignore_case": False, "most": 3}
    assert commands.search(json.dumps(request), PATIENCE, files.fd).text == "a.txt:1: needle\n"
    files.close()


def test_what_an_attempt_tells_of_itself_reaches_commands() -> None:
    """All of it, and nothing else that is called ROLECALL_."""
    told = set(Attempt.rolecall(MagicMock()))
    environ = dict.fromkeys({*told, "ROLECALL_KEY", SETTINGS}, "x")
    assert set(without_credentials(environ, ())) == {*told, "TERM"}
