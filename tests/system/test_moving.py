"""A team's queue goes over to PostgreSQL and back: by the very commands of docs/postgresql.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.fleet import effective
from daemon.queue import migrating, rows
from daemon.queue.database import connect
from tests.console import Operator
from tests.workspace import QUICK, ROOT, wait_for

REAL = Path(__file__).parent.parent / "data" / "queues"
BROKEN = "sprint-011"
PAGE = ROOT / "docs" / "postgresql.md"
FENCE = re.compile(r"^ *```(sh|yaml)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SLOW = "cat >/dev/null; while [ ! -e ../go ]; do sleep 0.05; done"


def steps(title: str) -> list[tuple[str, str]]:
    """The fenced blocks below a heading of the page: what kind each is, and its text."""
    part = PAGE.read_text().split(f"### {title}\n")[1].split("\n#")[0]
    return [(kind, text) for kind, text in FENCE.findall(part)]


class Team(Operator):
    """One host with a builder that supervises itself, and a way to do what a page says."""

    def __init__(self, path: Path, database: str) -> None:
        command = ["sh", "-c", SLOW]
        builder = {**QUICK, "agent": "command", "command": command, "wip_limit": 2}
        super().__init__(path, roles={"builder": builder}, run=["builder"])
        self.path, self.database = path, database
        self.set(workspace=str(self.workspace))

    def set(self, **values: str) -> None:
        """Change the inventory's variables."""
        made = {**json.loads(self.variables.read_text()), **values}
        self.variables.write_text(json.dumps(made))

    def do(self, kind: str, text: str) -> list[subprocess.CompletedProcess[str]]:
        """Do what one block of the page says; every command of it must succeed."""
        for who in ("shop_owner@", ""):
            text = text.replace(f"postgresql://{who}db.example.com/shop", self.database)
        text = text.replace("~/src/shop", str(self.workspace))
        lines = [line.strip() for line in text.splitlines()]
        if kind == "yaml":
            self.set(**dict(line.split(": ", 1) for line in lines))
            return []
        return [self.type(line) for line in lines]

    def type(self, line: str) -> subprocess.CompletedProcess[str]:
        words = [
            str(self.path / word) if word.endswith(("before.json", "after.json")) else word
            for word in line.split()
        ]
        if words[0] == "invoke":
            done = self.invoke(*words[1:])
        else:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done

    def tasks(self) -> dict[str, dict[str, Any]]:
        found = json.loads(self.invoke("queue.export").stdout)["tasks"]
        return {task["id"]: task for task in found}

    def statuses(self) -> list[str]:
        return [task["status"] for task in self.tasks().values()]


@pytest.fixture
def team(tmp_path: Path, database: str) -> Iterator[Team]:
    made = Team(tmp_path, database)
    yield made
    made.invoke("agents.stop")
    made.invoke("uninstall")


@pytest.fixture
def operator(tmp_path: Path, database: str) -> Operator:
    """A person whose inventory names a queue on PostgreSQL, which is made."""
    made = Operator(tmp_path, queue=database)
    (made.inventory / "host_vars" / "localhost.yml").write_text(f"workspace: {made.workspace}\n")
    with connect(database, "test") as connection:
        migrating.migrate(connection)
    return made


def test_a_team_moves_over_and_back_as_the_page_says(team: Team) -> None:
    """Tasks that were worked on when it stopped are worked on afterwards; nothing is lost."""
    team.write_queue(
        *({"id": f"T{n}", "title": "x", "status": "ready", "own": [n, 1.0]} for n in range(4)),
        metadata={"sprint": 7},
    )
    team.type("invoke install")
    team.type("invoke agents.start")
    wait_for(lambda: team.statuses().count("in_progress") == 2, "two attempts")
    over, back = steps("Over"), steps("Back")
    assert len(over) == 6
    assert len(back) == 3
    for kind, text in over:
        done = team.do(kind, text)
        if "--against" in text:
            assert "they are identical" in done[-1].stdout
            assert team.statuses() == ["ready"] * 4
    assert not team.queue.exists()
    wait_for(lambda: team.statuses().count("in_progress") == 2, "two attempts")
    assert all(task["attempts"] == 0 for task in team.tasks().values() if "attempts" in task)
    (team.workspace.parent / "go").touch()
    wait_for(lambda: team.statuses() == ["awaiting_test"] * 4, "all are done")
    for kind, text in back:
        done = team.do(kind, text)
        if "--against" in text:
            assert "they are identical" in done[1].stdout
    found = json.loads(team.queue.read_text())
    assert found["metadata"] == {"sprint": 7}
    assert [task["own"] for task in found["tasks"]] == [[n, 1.0] for n in range(4)]
    team.type("invoke queue.add --title more --id T9")
    wait_for(lambda: team.tasks()["T9"]["status"] == "awaiting_test", "the file's workers work")


def test_a_start_says_that_another_queue_is_installed(team: Team) -> None:
    """Whoever has named a new queue and not installed it would look for tasks there in vain."""
    team.write_queue()
    team.type("invoke install")
    assert "queue" not in team.type("invoke agents.start").stderr
    team.set(queue="file:new.json")
    for verb in ("start", "restart"):
        said = team.type(f"invoke agents.{verb}").stderr
        assert f"its workers read file:{team.queue}, not the inventory's file:" in said
        assert f"/new.json: {effective.RENEW} (or invoke install" in said
    team.type("invoke deploy --settle 0")
    assert "queue" not in team.type("invoke agents.start").stderr


@pytest.mark.parametrize("path", sorted(REAL.glob("*.json")), ids=lambda path: path.stem)
def test_real_queues_come_out_as_they_went_in(operator: Operator, path: Path) -> None:
    """Every value and every order; with a conflict marker nothing goes in, and its line is told."""
    done = operator.invoke("queue.import", str(path))
    if path.stem == BROKEN:
        assert done.returncode == 78
        line = 1 + path.read_text().splitlines().index("<<<<<<< HEAD")
        assert f"{path.name}:{line}: not a queue: a git conflict marker" in done.stderr
        assert operator.invoke("queue.list").stdout == "no tasks\n"
        return
    assert done.returncode == 0, done.stderr
    compared = operator.invoke("queue.check", "--against", str(path))
    assert (compared.returncode, "they are identical" in compared.stdout) == (0, True)
    exported = json.loads(operator.invoke("queue.export").stdout)
    # By another way than the comparison's: JSON as text keeps orders, and tells 1 from 1.0.
    assert json.dumps(exported) == json.dumps(json.loads(path.read_text()))


def test_each_difference_is_told_with_its_place(operator: Operator, tmp_path: Path) -> None:
    """A value, a key, an order of keys and of tasks, a task; exit status 1, for scripts."""
    first = {"id": "T1", "status": "ready", "n": 1, "list": [1, {"a": 2}]}
    operator.invoke(
        "queue.import",
        "-",
        stdin=json.dumps({"tasks": [first, {"id": "T2"}, {"id": "T3"}], "wip_limits": {}}),
    )
    other = {"status": "ready", "id": "T1", "n": 1.0, "list": [1, {"a": 3}, 4], "new": None}
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"tasks": [{"id": "T2"}, other, {"id": "T4"}], "wip_limits": {}}))
    done = operator.invoke("queue.check", "--against", str(path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["differences"] == [
        "tasks.T1.n: 1 here, 1.0 there",
        "tasks.T1.list[1].a: 2 here, 3 there",
        "tasks.T1.list: 1 more there, as 4",
        "tasks.T1.new: only there",
        "tasks.T1: another order: id here, status there",
        "tasks.T3: only here",
        "tasks.T4: only there",
        "tasks: another order: T1 here, T2 there",
    ]
    again = operator.invoke("queue.check", "--against", f"file:{path}")
    assert "tasks.T3: only here\n" in again.stdout
    itself = operator.invoke("queue.check", "--against", json.loads(done.stdout)["queue"])
    assert itself.returncode == 0


def test_an_import_waits_for_attempts_of_the_file(team: Team) -> None:
    """What they come to would go into the file, and be lost: nothing is imported yet."""
    team.write_queue({"id": "T1", "title": "x", "status": "ready"})
    once = subprocess.Popen(
        [sys.executable, "-m", "daemon", "--once", "--role", "builder"],
        cwd=ROOT,
        env=team.environ,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: team.statuses() == ["in_progress"], "an attempt")
        copy = str(team.path / "before.json")
        exported = team.invoke("queue.export", "--to", copy)
        assert "attempts are on T1: what they come to will not be in it" in exported.stderr
        team.invoke("queue.init", "--queue", team.database)
        team.set(queue=team.database)
        refused = team.invoke("queue.import", copy)
        assert refused.returncode == 1
        assert "attempts are on T1, and will settle into the file" in refused.stderr
        assert team.statuses() == []
    finally:
        (team.workspace.parent / "go").touch()
        once.wait()
    taken = team.invoke("queue.import", copy)
    assert taken.returncode == 0
    assert "T1: held as this was written: are those attempts over?" in taken.stdout
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "--once", "--role", "builder"],
        cwd=ROOT,
        env=team.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "released" in done.stderr
    assert team.tasks()["T1"]["status"] == "awaiting_test"
    assert team.tasks()["T1"].get("attempts", 0) == 0


def test_a_file_that_was_left_behind_is_told(team: Team) -> None:
    """As long as it holds a task that has not ended: somebody may take it for the queue."""
    team.write_queue({"id": "T1", "title": "x", "status": "ready"}, {"id": "T2", "status": "done"})
    team.invoke("queue.init", "--queue", team.database)
    team.set(queue=team.database)
    told = team.invoke("queue.check")
    assert told.returncode == 1
    what = "not the queue, which is in the database, and it holds 1 open task"
    assert f"problem: {team.queue}: {what}" in told.stdout
    assert what in team.invoke("doctor").stdout
    team.write_queue({"id": "T1", "title": "x", "status": "done"})
    assert team.invoke("queue.check").returncode == 0


def test_an_import_counts_as_the_server_does(operator: Operator) -> None:
    """What a task waits for, and its children: the same, taken in as a whole or one by one."""
    tasks: list[dict[str, Any]] = [
        {"id": "A", "status": "ready", "dependencies": ["D", "X", "gone", 7, None]},
        {"id": "S", "status": "planning_complete", "dependencies": ["S"], "parent": "S"},
        {"id": "D", "status": "done", "parent": "S", "parent_task": "S", "dependencies": "A"},
        {"id": "X", "status": "cancelled", "parent": "S", "subtasks": [{"id": "X.1"}]},
        {"id": "R", "status": "ready", "parent": "S", "dependencies": ["D", "D"]},
        {"id": "R", "status": "ready", "parent": "S", "dependencies": ["A"]},
        {"status": "completed", "parent": "X", "dependencies": ["D", "R"]},
    ]
    counts = """SELECT id, waiting, open_children, good_children,
        ARRAY(SELECT n.id FROM rolecall.needs n WHERE n.place = t.place ORDER BY 1),
        ARRAY(SELECT f.parent FROM rolecall.family f WHERE f.place = t.place ORDER BY 1)
        FROM rolecall.task t ORDER BY place"""
    done = operator.invoke("queue.import", "-", stdin=json.dumps({"tasks": tasks}))
    assert done.returncode == 0, done.stderr
    with connect(json.loads(operator.variables.read_text())["queue"], "test") as connection:
        whole = connection.execute(counts).fetchall()
        connection.execute("TRUNCATE rolecall.task, rolecall.needs, rolecall.family")
        apart = rows.apart(tasks)
        for part in apart.parts(1):
            values = [json.dumps(part.facts), part.documents]
            connection.execute("SELECT rolecall.append(%s, %s)", values)
        one_by_one = connection.execute(counts).fetchall()
    assert whole == one_by_one
    assert [row[1:4] for row in whole][:2] == [(4, 0, 0), (1, 2, 1)]
