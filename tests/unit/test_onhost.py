"""What a host's own code answers: through a pipe, as stage 0 hands over to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.config import to_json
from daemon.errors import RolecallError
from daemon.fleet import onhost
from daemon.fleet.alone import alone
from daemon.fleet.connection import Local
from daemon.fleet.place import Lock, place_of
from daemon.fleet.speaker import ALIVE, MARK
from tests.queues import FileBackend
from tests.workspace import PATIENCE, ROOT

SERVE = """
import json, sys
from daemon.fleet import onhost
onhost.serve(*json.loads(sys.argv[1]))
"""

NOBODY = (1 << 22) + 1  # no process can have that id


class Here:
    """A host's process: its messages, and how it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config = FileBackend(path / "shop").config._replace(supervisor="pidfile")
        self.config, self.logs = to_json(config), Path(config.paths.logs)

    def start(self, verb: str, **more: Any) -> subprocess.Popen[bytes]:
        request = {"verb": verb, "options": {"host": "web1"}, "config": self.config, **more}
        facts = {"home": str(self.path), "node": "far"}
        return subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps([request, facts])],
            cwd=ROOT,
            env={**os.environ, "HOME": str(self.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ask(self, verb: str, **more: Any) -> dict[str, Any]:
        """The last message."""
        with self.start(verb, **more) as running:
            assert running.stdout
            out = running.stdout.read()
        return messages(out)[-1]


def messages(out: bytes) -> list[dict[str, Any]]:
    lines = out.splitlines()
    assert all(line.startswith(MARK) for line in lines), out
    return [json.loads(line.removeprefix(MARK)) for line in lines]


@pytest.fixture
def here(tmp_path: Path) -> Here:
    (tmp_path / "shop").mkdir()
    return Here(tmp_path)


def test_a_result_is_what_json_prints(here: Here) -> None:
    """Under the inventory's name of the host, whatever it calls itself."""
    rows = here.ask("status")["result"]
    assert {(row["host"], row["state"]) for row in rows} == {("web1", "not installed")}
    assert set(rows[0]) >= {"role", "pid", "since", "working_on", "config_is_older"}


def test_an_error_travels_with_its_place_hint_and_exit_status(here: Here) -> None:
    """As it would be said on the host."""
    error = here.ask("doctor", options={"host": "web1", "role": "bilder"})["error"]
    assert error["problems"] == [["", 'unknown role "bilder"', 'did you mean "builder"?']]
    assert error["exit_code"] == 2


def test_what_the_system_refuses_is_told(here: Here) -> None:
    """A folder in the place of the config: an error of the host's, and no traceback."""
    (here.path / ".config/rolecall/agent.yml").mkdir(parents=True)
    where, what, _ = here.ask("status")["error"]["problems"][0]
    assert (where, what) == (f"{here.path}/.config/rolecall/agent.yml", "Is a directory")


def test_a_verb_of_another_time_is_refused(here: Here) -> None:
    """The host's release is older than the operator's: that is what a deploy mends."""
    assert here.ask("dance")["error"]["problems"] == [
        ["", 'the release on this host does not know "dance"', "invoke deploy"]
    ]


@pytest.mark.parametrize("config", ['{"workspace": "/x", "news": 1}', "{}", "no", "[]"])
def test_a_config_of_another_time_is_refused(here: Here, config: str) -> None:
    """Settings that this release does not know are no reason for a traceback."""
    problem = here.ask("status", config=config)["error"]["problems"][0]
    assert "does not understand the inventory's settings" in problem[1]
    assert problem[2] == "invoke deploy"


def test_settings_of_a_newer_checkout_are_no_reason_to_refuse(here: Here) -> None:
    """The operator's may have one more, at any place, that the host's release does not know."""
    whole = json.loads(here.config)
    role = whole["roles"]["builder"]
    for document in (whole, role, whole["paths"], role["limits"], role["budget"]["day"]):
        document["news"] = {"a": 1}
    assert here.ask("status", config=json.dumps(whole)) == here.ask("status")
    assert "result" in here.ask("stop", config=json.dumps(whole))


def test_a_mistake_of_ours_is_an_error_too(here: Here) -> None:
    """The operator sees what it was; the traceback is on stderr."""
    config = json.dumps({**json.loads(here.config), "run": ["nobody"]})  # no inventory says that
    with here.start("doctor", config=config) as running:
        assert running.stdout
        assert running.stderr
        out, err = running.stdout.read(), running.stderr.read()
    assert messages(out)[-1]["error"]["problems"][0][1].startswith("KeyError")
    assert b"Traceback" in err


def test_log_lines_come_one_by_one_until_the_operator_goes(here: Here) -> None:
    """With signs of life between them; an end of stdin ends ``logs``, and what it has started."""
    here.logs.mkdir(parents=True, exist_ok=True)
    log = here.logs / "builder.log"
    log.write_text("first\n")
    options = {"host": "web1", "role": "builder", "follow": True, "lines": 5}
    with here.start("logs", options=options) as running:
        assert running.stdout
        assert running.stdin
        assert messages(running.stdout.readline()) == [{"line": "first"}]
        with log.open("a") as file:
            file.write("second\n")
        said = []
        while {"line": "second"} not in said or {"alive": 1} not in said:
            assert select.select([running.stdout], [], [], PATIENCE)[0]
            said += messages(running.stdout.readline())
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        running.stdin.close()
        try:
            running.wait(PATIENCE)
        finally:
            running.terminate()
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_nobody_needs_to_listen(here: Here) -> None:
    """What was begun is done, though the line is cut in the middle of it."""
    with here.start("install", options={"host": "web1"}) as running:
        assert running.stdout
        assert running.stdin
        running.stdout.close()
        running.stdin.close()
        running.wait(PATIENCE)
    assert (here.path / ".config/rolecall/agent.yml").exists()


@pytest.mark.parametrize("verb", onhost.CHANGING)
def test_what_changes_a_host_waits_for_who_is_at_work(here: Here, verb: str) -> None:
    """Such as a restart for a deploy that watches its workers; with signs of life."""
    place = place_of(str(here.path), "agent")
    with contextlib.ExitStack() as locked:
        locked.enter_context(Lock(place))
        with here.start(verb) as running:
            assert running.stdout
            assert messages(running.stdout.readline()) == [{"alive": 1}]
            locked.close()
            assert [*messages(running.stdout.read())[-1]] == ["result"]


def test_this_machine_has_the_lock_too_and_nothing_is_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no release is there: not even the time of a folder changes."""
    (tmp_path / "shop").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    config = FileBackend(tmp_path / "shop").config
    before = [os.stat(each) for each in (tmp_path, config.workspace)]
    where = os.open(config.workspace, os.O_RDONLY)
    with alone(Local(), config), pytest.raises(BlockingIOError):
        fcntl.flock(where, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(where, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(where)
    assert [each.st_mtime_ns for each in before] == [
        os.stat(each).st_mtime_ns for each in (tmp_path, config.workspace)
    ]


def test_what_a_killed_write_has_left_goes(here: Here) -> None:
    """With the next write of the file, or with all else; not what is being written."""
    folder = here.path / ".config" / "rolecall"
    folder.mkdir(parents=True)
    names = [f"{name}.{NOBODY}.tmp" for name in ("agent.yml", "agent.deploying", "linger")]
    for name in names:
        (folder / name).write_text("half")
    (folder / f"agent.yml.{os.getpid()}.tmp").write_text("another's")
    assert here.ask("install")["result"]["changes"][0]["kind"] == "create"
    left = ["agent.yml", f"agent.yml.{os.getpid()}.tmp", *names[1:]]
    assert sorted(os.listdir(folder)) == sorted(left)
    (folder / left[1]).unlink()
    done = here.ask("uninstall")["result"]["changes"]
    assert {each["path"] for each in done} >= {str(folder / name) for name in names[1:]}
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_no_end_of_a_login_ends_what_was_begun(here: Here, number: signal.Signals) -> None:
    """An ssh server sends the one when the line is cut, a login manager may send the other.

    The install goes on, here behind a lock.
    """
    place = Path(place_of(str(here.path), "agent"))
    place.mkdir(parents=True)
    locked = contextlib.ExitStack()
    locked.enter_context(Lock(str(place)))
    with here.start("install") as running:
        assert running.stdout
        assert messages(running.stdout.readline()) == [{"alive": 1}]
        running.send_signal(number)
        locked.close()
        assert "result" in messages(running.stdout.read())[-1]
    assert (here.path / ".config/rolecall/agent.yml").exists()


def test_signs_of_life_come_often_enough() -> None:
    """Several of them in the shortest time after which an operator gives up by default."""
    assert ALIVE * 3 < 10


def test_every_verb_has_its_words_here(tmp_path: Path) -> None:
    """In this process, too, an unknown one is an error."""
    (tmp_path / "shop").mkdir()
    config = FileBackend(tmp_path / "shop").config
    with pytest.raises(RolecallError, match="dance"):
        onhost.perform(Local(), config, "dance", {}, print)


def test_a_pipe_in_the_place_of_a_file_holds_up_nobody(tmp_path: Path) -> None:
    """Nobody may ever write to it; a masked unit, a link to /dev/null, is an empty file."""
    os.mkfifo(tmp_path / "agent.yml")
    with pytest.raises(RolecallError, match="it is no file"):
        Local().read(str(tmp_path / "agent.yml"))
    (tmp_path / "masked").symlink_to("/dev/null")
    assert not Local().read(str(tmp_path / "masked"))
    assert Local().read(str(tmp_path / "nothing")) is None
    (tmp_path / "file").write_text("x")
    assert Local().read(str(tmp_path / "file")) == "x"
