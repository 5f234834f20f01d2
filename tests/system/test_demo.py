"""The demo, as a person types it; of sample agents, and of an agent CLI of one's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import agentclis, fakellm, standin
from tests.workspace import ROOT, wait_for

MINUTE = 60.0  # seconds: what the demo promises
TASKS = [
    "SHOP-1",
    *(f"SHOP-{n}" for n in "234"),
    *(f"SHOP-1-{n}" for n in ("B1", "B2", "B3", "T1")),
]
Started = subprocess.Popen[str]
#: What an agent that plans, builds and tests the demo's story does, by its role.
WORK = """case "$ROLECALL_ROLE" in
planner) printf '{"outcome": "success", "add_tasks": [{"id": "SHOP-1-B1", "title": "Count", \
"type": "Build", "parent": "SHOP-1"}]}' > "$ROLECALL_RESULT_FILE" ;;
builder) [ "$ROLECALL_TASK_ID" = trial ] ||
{ git apply --index "%s" && git commit --quiet --message "SHOP-1-B1: count the pieces"; } ;;
tester) echo '{"outcome": "success"}' > "$ROLECALL_RESULT_FILE" ;;
esac"""
PATCH = ROOT / "docs" / "demo" / "agents" / "patches" / "SHOP-2.patch"


@pytest.fixture
def start(tmp_path: Path) -> Callable[[], Started]:
    def started() -> Started:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "docs" / "demo" / "sprint.py")],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return started


def processes(folder: Path) -> list[str]:
    """What still runs with the folder in its command line or environment, less what sits there."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if int(entry) != os.getpid():
            try:
                said = Path("/proc", entry, "cmdline").read_bytes()
                said += Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in said:
                found.append(f"{entry}: {said!r:.200}")
    return found


def test_it_drains_its_sprint(start: Callable[[], Started], tmp_path: Path) -> None:
    """All five roles work, one build is rejected and refined, the code is right in the end."""
    demo = start()
    said, _ = demo.communicate(timeout=2 * MINUTE)
    assert demo.returncode == 0, said

    (folder,) = tmp_path.iterdir()  # it is all that was made, and it is named
    assert str(folder) in said
    shop = folder / "shop"
    tasks = json.loads((shop / ".oodatcaa/work/SPRINT_QUEUE.json").read_text())["tasks"]
    assert {task["id"]: task["status"] for task in tasks} == dict.fromkeys(TASKS, "done")
    moves = [line.split()[2:7] for line in said.splitlines() if " -> " in line]
    assert {move[0] for move in moves} == {
        "planner",
        "builder",
        "tester",
        "refiner",
        "integrator",
    }
    assert ["builder", "SHOP-3", "in_progress", "->", "needs_adapt"] in moves
    assert ["refiner", "SHOP-3", "adapting", "->", "awaiting_test"] in moves
    seconds = re.search(r"^8 tasks in (\d+) s", said, re.MULTILINE)
    assert seconds
    assert int(seconds[1]) < MINUTE

    command = [sys.executable, "-m", "pytest", "-q"]
    passed = subprocess.run(command, cwd=shop, capture_output=True, text=True, check=False)
    assert "passed" in passed.stdout, passed.stdout
    assert passed.returncode == 0, passed.stdout
    status = ["git", "status", "--porcelain", "--", ":/", ":(exclude).oodatcaa"]
    changed = subprocess.run(status, cwd=shop, capture_output=True, text=True, check=True)
    assert changed.stdout == ""
    assert processes(folder) == []


def test_an_interrupt_stops_its_workers(start: Callable[[], Started], tmp_path: Path) -> None:
    """Ctrl-C in the middle of an attempt leaves no process."""
    demo = start()
    lines = demo.stdout
    assert lines
    wait_for(lambda: " -> in_progress" in lines.readline(), "a build")
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=MINUTE)
    assert demo.returncode == 130
    (folder,) = tmp_path.iterdir()
    assert processes(folder) == []


@pytest.fixture
def tell(tmp_path: Path, home: Path) -> Callable[..., Started]:
    """Start the story of an agent CLI; programs of the test's own come first on its PATH."""

    def started(name: str, **environ: str) -> Started:
        folder = tmp_path / "tmp"
        folder.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, str(ROOT / "docs" / "demo" / "story.py"), name],
            env={
                **os.environ,
                "TMPDIR": str(folder),
                "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return started


def test_make_knows_which_demo_is_meant() -> None:
    """An AGENT that is typed is; one that happens to be in the environment is not."""

    def meant(*words: str) -> str:
        # These tests may run under make themselves: it would tell of the folder, too.
        command = ["make", "--no-print-directory", "--dry-run", "demo", *words]
        environ = {**os.environ, "AGENT": "1", "MODEL": "m"}
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-1].partition("docs/demo/")[2]

    assert meant() == "sprint.py"
    assert meant("AGENT=codex") == "story.py 'codex' ''"
    assert meant("AGENT=codex", "MODEL=small") == "story.py 'codex' 'small'"


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("cluade", 2, 'error: unknown agent "cluade"\nhint:  did you mean "claude"?\n'),
        ("claude", 1, "error: claude is not on PATH\nhint:  npm install"),
    ],
)
def test_an_agent_that_is_not_there_fails_at_once(
    tell: Callable[..., Started], tmp_path: Path, name: str, status: int, said: str
) -> None:
    """With what to type; nothing is made."""
    story = tell(name, PATH="/usr/bin:/bin")
    assert story.communicate(timeout=MINUTE)[0].startswith(said)
    assert story.returncode == status
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_agent_that_is_not_logged_in_fails_before_it_starts(
    tell: Callable[..., Started], tmp_path: Path
) -> None:
    """With what logs it in; nothing is left."""
    standin.claude(tmp_path / "bin", last=standin.said("Please run /login", is_error=True))
    story = tell("claude")
    said = story.communicate(timeout=MINUTE)[0]
    assert story.returncode == 1
    assert "error: Please run /login\nhint:  log in: claude" in said
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_interrupt_stops_an_agent_of_ones_own(
    tell: Callable[..., Started], tmp_path: Path
) -> None:
    """Ctrl-C in the middle of an attempt leaves no process."""
    script = '[ "$ROLECALL_TASK_ID" = trial ] || { setsid sleep 300 & sleep 300; }'
    standin.claude(tmp_path / "bin", script)
    story = tell("claude")
    lines = story.stdout
    assert lines
    wait_for(lambda: " -> planning" in lines.readline(), "a plan")
    story.send_signal(signal.SIGINT)
    story.communicate(timeout=MINUTE)
    assert story.returncode == 130
    (folder,) = (tmp_path / "tmp").iterdir()
    assert processes(folder) == []


def see_it_through(story: Started, tmp_path: Path) -> None:
    """The story goes from its plan to main, and what it has cost is told."""
    said, _ = story.communicate(timeout=3 * MINUTE)
    assert story.returncode == 0, said
    assert "on your own account" in said.partition(" -> ")[0]
    folder = next((tmp_path / "tmp").glob("rolecall-demo-*"))
    tasks = json.loads((folder / "shop/.oodatcaa/work/SPRINT_QUEUE.json").read_text())["tasks"]
    assert {task["id"]: task["status"] for task in tasks} == {"SHOP-1": "done", "SHOP-1-B1": "done"}
    assert "Merge SHOP-1-B1" in said
    assert "2 passed" in said
    spent = said.partition("USD\n")[2].partition("In all: ")[0].splitlines()
    assert [line.split()[1] for line in spent] == ["planner", "builder", "tester"]
    assert processes(folder) == []


def test_an_agent_of_ones_own_takes_a_story_to_main(
    tell: Callable[..., Started], tmp_path: Path
) -> None:
    """It plans, builds and tests; Rolecall merges; the tests are green then."""
    standin.claude(tmp_path / "bin", WORK % PATCH)
    see_it_through(tell("claude"), tmp_path)


def test_the_real_claude_takes_a_story_to_main(
    tell: Callable[..., Started], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its own user would see it, but for what the model says."""
    if why := agentclis.missing("claude"):
        pytest.skip(why)
    monkeypatch.setattr(fakellm, "WORK", WORK % PATCH)
    with fakellm.served() as llm:
        key = {"ANTHROPIC_API_KEY": agentclis.KEY, "ANTHROPIC_BASE_URL": f"{llm}/work"}
        see_it_through(tell("claude", PATH=agentclis.path(), **key), tmp_path)
