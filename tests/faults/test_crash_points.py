"""Kill -9 at every step of a worker, an attempt, a recovery, a stop and the operator's commands.

A first run of each scene lists its steps (``crashing`` names them), so that a new step joins by
itself. Then real processes are run once for each step and die there: *before* it, for what one
step leaves is what the next one finds; *after* it as well where another process goes on by itself
(spawn, fork) or no step follows. Afterwards a new worker has to bring every task to its end.

One step alone: ``CRASH_ONLY='settle > FileQueue._settle > Update.write > put > rename' pytest
tests/faults/test_crash_points.py`` takes the steps whose name holds that text.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from daemon import process
from daemon.queue import spending
from daemon.queue.account import Account
from tests.workspace import PATIENCE, ROOT, Workspace, wait_for

SHARES = 4  # of each scene, for pytest-xdist to spread; a step's name says which one is its own
DRIVER = [sys.executable, str(ROOT / "tests" / "faults" / "crashing.py")]
DRAIN = ("--role", "builder", "--drain")
#: What has to be among the steps of some scenes.
KINDS = {
    "one of them dies": (
        "^worker: PidFile.write > rename #1 before",
        "^worker: .*FileQueue.claim > .*hold > _locked > lock #1 before",
        "^worker: .*Leases.write > write_aside > .*fsync #1 before",
        "^worker: .*Leases.write > put > rename #1 before",
        "^worker: .*make > mkdir #1 before",
        "^worker: .*Update.write > write_aside > .*fsync #1 before",
        "^worker: .*Update.write > put > rename #1 before",
        "^worker: .*Update.sync > sync_folder > fsync #1 before",
        "^worker: .*FileQueue.claim > .*hold > unlock #1 before",
        "^worker: .*start > spawn #1 before",
        "^worker: .*start > spawn #1 after",
        "^worker: .*Attempts.reap > wait #1 before",
        "^attempt: .*FileQueue.take_over .* rename #1 before",
        "^attempt: .*Attempt.write_prompt > write_new > create #1 before",
        "^attempt: .*Attempt.run_agent .* fork #1 before",
        "^attempt: .*Attempt.run_agent .* fork #1 after",
        "^agent: .*exec #1 before",
        "^attempt: .*FileQueue.renew .* rename #1 before",
        "^attempt: .*Attempt.run_agent .* wait #1 before",
        "^attempt: .*Attempt.run_gates .* fork #1 before",
        "^attempt: .*Attempt.run_gates .* wait #1 before",
        "^attempt: Attempt.settle .*Update.write > put > rename #1 before",
        "^attempt: Attempt.settle .*Leases.remove > drop > unlink #1 before",
        "^attempt: Attempt.settle > FileQueue.*unlock #1 after",
    ),
    "the recovering worker dies": (
        "Attempts.recover > FileQueue.stale > .*hold > _locked > lock #1 before",
        "kill_tree > .* signal #1 before",
        "FileQueue.recover > .*Update.write > put > rename #1 before",
        "FileQueue.recover > .*Leases.remove > drop > unlink #1 before",
    ),
    "the attempt never began": ("Attempts.settle_for > .*Update.write > put > rename #1 before",),
    "while a worker stops": (
        "^worker: .*Worker.end_attempts > .* signal #1 before",
        "^attempt: .*> end > .* signal #1 before",
        "^attempt: Attempt.settle .*Update.write > put > rename #1 before",
    ),
    "a budget is kept": (
        "^worker: .*Budgets.reserve > append > write #1 before",
        "^worker: .*Budgets.reserve > append > fsync #1 before",
        "^worker: .*FileQueue.claim .*Update.write > put > rename #1 before",
        "^attempt: .*Budgets.charge > append > write #1 before",
        "^attempt: Attempt.settle .*Update.write > put > rename #1 before",
        "^attempt: Attempt.settle .*Leases.remove > drop > unlink #1 before",
    ),
    "invoke queue.add": ("^invoke: .*Update.write > put > rename #1 before",),
    "invoke queue.cancel of a live attempt": ("^invoke: .*Leases.ask > .* rename #1 before",),
}
#: How many signals end a tree, and who collects what of it, differs from run to run; a gate's
#: renewals are those of the agent.
ALIKE = re.compile(r"> signal #[4-9]|> reap > wait|run_gates.*renew")
ENDED = {
    "awaiting_test",
    "needs_adapt",
    "needs_manual",
    "cancelled",
}  # a gate that is killed rejects
WRITTEN = "Update.write > put > rename #1 before"
TASK: dict[str, Any] = {"id": "T1", "title": "x", "type": "Build", "status": "ready"}
#: The agent's lock is held until its last process is dead: a second one that meets it overlaps.
AGENT = (
    "exec 9>>agent.lock; flock -n 9 || echo $ROLECALL_TOKEN >>overlap; "
    "echo $ROLECALL_TOKEN $ROLECALL_ATTEMPT >>begun; "
)
ONCE_LONG = AGENT + "[ $ROLECALL_TOKEN -gt 1 ] || { : >up; setsid sleep 600; }"
WAITING = AGENT + "[ -e up ] || { : >up; while [ ! -e go ]; do sleep 0.05; done; }"
USED, RESERVED = 7, 100  # tokens of an attempt: what it tells, and what stands for it else
SPENDING = AGENT + f"""echo '{{"usage": {{"input_tokens": {USED}}}}}' >$ROLECALL_RESULT_FILE"""
RENEWAL = "attempt: Attempt.work * Attempt.run_agent * Attempt.tick * lock #1 before"
REAPED = "worker: Worker.drain * Attempts.reap > wait #1 before"
TAKE_OVER = "attempt: *FileQueue.take_over * lock #1 before"


class Scene(NamedTuple):
    """What runs, and which of its steps are asked about.

    ``crashed``: the steps at which an earlier worker and its attempt have died; ``beside``: those
    at which others die in the same run; ``signals``: what the worker is sent once its agent is up;
    ``cancelled``: a person cancels the task while all are dead, so that nobody claims it again;
    ``live``: a worker and an attempt are at work meanwhile; ``budget``: the role has one.
    """

    name: str
    wanted: tuple[str, ...] = ("",)
    who: str = "worker"
    arguments: tuple[str, ...] = DRAIN
    script: str = AGENT
    how: str = "kill"
    crashed: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    signals: tuple[int, ...] = ()
    cancelled: bool = False
    task: dict[str, Any] = TASK
    live: bool = False
    budget: bool = False


def command(name: str, *arguments: str, **given: Any) -> Scene:
    """An operator's command. All write in the same way: most steps are asked about once, of add."""
    more = ["of a live attempt"] * bool(given.get("live")) + ["--replace"] * (
        "--replace" in arguments
    )
    return Scene(
        " ".join(["invoke", name, *more]),
        given.pop("wanted", ("> rename", "> fsync")),
        who="invoke",
        arguments=(name, *arguments),
        script=WAITING if given.get("live") else AGENT,
        **given,
    )


SCENES = (
    Scene("one of them dies"),
    # Until there is an attempt, the worker is all that can die.
    Scene("all die at once", ("attempt:", "agent:", "> spawn", "Attempts.reap"), how="all"),
    Scene(
        "all die and the task is cancelled",
        ("> write_aside >", "> make >"),
        how="all",
        cancelled=True,
    ),
    Scene(
        "the recovering worker dies",
        ("Attempts.recover",),
        script=ONCE_LONG,
        crashed=(RENEWAL, REAPED),
    ),
    Scene("the attempt never began", ("Attempts.settle_for",), beside=(TAKE_OVER,)),
    Scene(
        "while a worker stops",
        (" Worker.end_attempts", "> end >", "attempt: Attempt.settle"),
        arguments=("--role", "builder"),
        script=WAITING,
        signals=(signal.SIGTERM,),
    ),
    Scene(
        "a budget is kept",
        ("Budgets.", "Update.write > put > rename", "Leases.remove"),
        script=SPENDING,
        budget=True,
    ),
    command("queue.add", "--id=T2", "--title=y", "--type=Build", wanted=("",)),
    command("queue.retry", "T1", task={**TASK, "status": "needs_manual", "attempts": 3}),
    command("queue.cancel", "T1"),
    command("queue.cancel", "T1", live=True),
    command("queue.release", "T1", live=True),
    command("queue.import", "more.json"),
    command("queue.import", "more.json", "--replace"),
)
EVERY = {scene.name: scene for scene in SCENES}


def is_running(pid: int) -> bool:
    found = process.stat(pid)
    return found is not None and found.state not in "ZX"


class Reader:
    """Somebody who reads the queue all the time and takes no lock."""

    def __init__(self, path: Path) -> None:
        self.path, self.faults, self.reads = path, set[str](), 0
        self.tokens: dict[str, list[int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._over.wait(0.002):
            self.reads += 1
            try:
                tasks = json.loads(self.path.read_bytes())["tasks"]
            except (OSError, ValueError, KeyError) as error:
                self.faults.add(repr(error))
                continue
            for task in tasks:
                seen = self.tokens.setdefault(task["id"], [0])
                if task.get("token", 0) != seen[-1]:
                    seen.append(task.get("token", 0))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def workspace(path: Path, scene: Scene) -> Iterator[Workspace]:
    """A workspace with one task, whose retries wait for nothing; its processes are ended."""
    path.mkdir()
    ws = Workspace(path)
    now = {"base": 0, "cap": 0}
    builder = {"script": scene.script, "gates": [["true"]], "backoff": now, "stop_budget": 0.1}
    if scene.budget:
        builder["budget"] = {"attempt": {"tokens": RESERVED}, "total": {"tokens": 1_000_000}}
    ws.write_config(builder=builder)
    ws.write_queue(scene.task)
    (path / "more.json").write_text(json.dumps({"tasks": [scene.task, {**TASK, "id": "T2"}]}))
    inventory = path / "inventory"
    inventory.mkdir()
    (inventory / "hosts.yml").write_text("all: {hosts: {localhost: }}\n")
    (inventory / "group_vars").mkdir()
    (inventory / "group_vars" / "all.yml").write_text(ws.config.read_text())
    try:
        yield ws
    finally:
        ws.end()


def play(ws: Workspace, scene: Scene, *at: str) -> list[str]:
    """Run the scene; who reaches one of the steps dies. Returns all steps in their order."""
    log = ws.path / f"steps.{len(list(ws.path.glob('steps.?')))}"
    arguments = [each.replace("more.json", f"{ws.path}/more.json") for each in scene.arguments]
    if scene.who == "worker":
        arguments += ["--config", str(ws.config), *pid_file(ws)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "ROLECALL_INVENTORY": f"{ws.path}/inventory"}
    environ |= {"CRASH_LOG": str(log), "CRASH_AT": "\n".join(at), "CRASH_HOW": scene.how}
    with (ws.path / "workers.log").open("a") as said:
        run = subprocess.Popen(
            [*DRIVER, scene.who, *arguments], cwd=ROOT, env=environ, stdout=said, stderr=said
        )
    ws.started.append(run)  # type: ignore[arg-type]  # nobody reads its output, text or not
    if scene.signals:
        wait_for(lambda: (ws.path / "up").exists() or run.poll() is not None, "the agent is up")
    for number in scene.signals:
        run.send_signal(number)
    run.wait(PATIENCE)
    for number, step in enumerate(at):
        died = Path(f"{log}.died.{number}")
        pid = wait_for(lambda: died.exists() and died.read_text(), f"came to: {step}\n{ws.log()}")  # noqa: B023  # called in this very turn
        wait_for(lambda: not is_running(int(pid)), f"{pid} is dead")  # noqa: B023  # the same
    return log.read_text().splitlines()


def prepare(ws: Workspace, scene: Scene) -> None:
    """What comes before the scene."""
    if scene.crashed:
        play(ws, EVERY["one of them dies"], *scene.crashed)
    if scene.live:
        ws.start("--role", "builder")
        wait_for((ws.path / "up").exists, "the agent is up")


def steps_of(ws: Workspace, scene: Scene) -> list[str]:
    """The steps to die at, in their order."""
    prepare(ws, scene)
    every = list(dict.fromkeys(play(ws, scene, *scene.beside)))
    last = {name.partition(":")[0]: name for name in every}.values()
    both = (" spawn #", " fork #")
    return [
        name
        for name in every
        if any(each in name for each in scene.wanted)
        and not ALIKE.search(name)
        and (name.endswith(" before") or name in last or any(each in name for each in both))
    ]


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Scene], list[str]]:
    """Gives the steps of a scene, listed by a run in which nobody dies at any."""
    known: dict[str, list[str]] = {}

    def look(scene: Scene) -> list[str]:
        if scene.name not in known:
            folder = tmp_path_factory.mktemp("recorded") / "ws"
            with workspace(folder, scene) as ws:
                known[scene.name] = steps_of(ws, scene)
        return known[scene.name]

    return look


Recorded = Callable[[Scene], list[str]]


def test_steps_of_every_kind_are_died_at(recorded: Recorded) -> None:
    """The lists are made by runs: none may have lost the kinds of steps that the promises name."""
    for name, kinds in KINDS.items():
        steps = recorded(EVERY[name])
        for kind in kinds:
            assert any(re.search(kind, step) for step in steps), f"{name}: {kind}"


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", EVERY)
def test_death_at_any_step_loses_nothing(
    tmp_path: Path, recorded: Recorded, subtests: pytest.Subtests, name: str, share: int
) -> None:
    """One attempt at a time, no torn queue, nothing stuck or left, and what died is counted.

    Broken once each, and this failed: by ``Attempts.recover`` killing no tree (agents overlapped);
    by ``put`` writing over the file instead of renaming (a reader saw half of it); by settling that
    removed the lease before the queue was written, and by recovery that made ``released`` of a
    death (no attempt was counted). Before they were mended it found files left beside leases,
    queue and PID file.
    """
    scene, only = EVERY[name], os.environ.get("CRASH_ONLY", "")
    steps = recorded(scene)
    assert steps
    for number, step in enumerate(steps):
        if zlib.crc32(step.encode()) % SHARES == share and only in step:
            with subtests.test(step), workspace(tmp_path / str(number), scene) as ws:
                die_and_mend(ws, scene, step, steps)


def die_and_mend(ws: Workspace, scene: Scene, step: str, steps: list[str]) -> None:
    """Let somebody die at the step, then let a new worker go on, and look at what there is."""
    with Reader(ws.queue) as reader:
        prepare(ws, scene)
        play(ws, scene, step, *scene.beside)
        if scene.cancelled:
            document = ws.document()
            document["tasks"][0]["status"] = "cancelled"
            ws.write_queue(*document["tasks"])
        mend(ws)
    assert reader.faults == set()
    assert reader.reads
    for tokens in reader.tokens.values():
        assert tokens == sorted(tokens)
    nothing_is_left(ws)
    if scene.budget:
        what_was_spent_stays(ws)
    if scene.who == "worker" and not scene.cancelled:
        what_died_counted(ws, scene, step, steps)


def pid_file(ws: Workspace) -> tuple[str, str]:
    return "--pid-file", str(ws.path / "pids" / "w.pid")


def mend(ws: Workspace) -> None:
    """A new worker brings every task to its end, and leaves when it is asked."""
    (ws.path / "go").touch()
    started = ws.log().count(" started\n")
    worker = ws.start("--role", "builder", *pid_file(ws))

    def ended() -> bool:
        statuses = {task["status"] for task in ws.document()["tasks"]}
        quiet = statuses <= ENDED and not ws.leases() and not halves(ws)
        return quiet and ws.log().count(" started\n") > started

    wait_for(ended, f"every task at its end\n{ws.queue.read_text()}\n{ws.leases()}\n{ws.log()}")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0


def halves(ws: Workspace) -> list[str]:
    """Files that were to take another's place."""
    names = [f"{folder}/{name}" for folder, _, files in os.walk(ws.path) for name in files]
    return [name for name in names if name.endswith((".new", ".tmp"))]


def nothing_is_left(ws: Workspace) -> None:
    """No process, no lease, no file that was to take another's place."""
    assert not (ws.path / "overlap").exists()
    wait_for(lambda: ws.tree() == [], "no process of an attempt is left")
    assert halves(ws) == []
    assert [path.name for path in (ws.path / ".leases").glob("*")] == []


def what_died_counted(ws: Workspace, scene: Scene, step: str, steps: list[str]) -> None:
    """An attempt whose process died counts; a claim that was never written down does not.

    The agent's last run tells: the number of its attempt is one more than what counted before.
    """
    runs = [tuple(map(int, line.split())) for line in ws.file("begun").splitlines()]
    tokens, numbers = [run[0] for run in runs], [run[1] for run in runs]
    assert tokens == sorted(set(tokens))
    counted = numbers[-1] - 1
    if scene.name in {"one of them dies", "all die at once"}:
        when = steps.index(step)
        claimed, settled = (
            next(
                (i for i, name in enumerate(steps) if name.startswith(who) and WRITTEN in name), -1
            )
            for who in ("worker: Worker.drain > Worker.claim", "attempt: Attempt.settle")
        )
        writer = step.partition(":")[0]
        if writer == "worker" and when <= claimed:
            assert runs in ([(1, 1)], [(2, 1)])
        elif writer == "worker":
            assert counted <= 1
        elif writer == "attempt":
            assert counted == (when <= settled), (runs, ws.log())


def what_was_spent_stays(ws: Workspace) -> None:
    """Each attempt whose agent ran is charged, and once: what it told, or what was reserved.

    Broken once by reserving nothing: what a dead attempt had spent was forgotten.
    """
    runs = ws.path / ".agent-runs"
    account = Account(str(runs / spending.NAME))
    account.look()
    lost = account.reserved(
        lambda _: False, lambda who: (runs / who[0] / str(who[1]) / "stdout.log").exists()
    )[1]
    total = account.charged.of("builder").tokens + sum(entry.amount.tokens for entry in lost)
    lines = map(json.loads, (runs / spending.NAME).read_text().splitlines())
    told = {line["token"] for line in lines if line.get("usage", {}).get("input_tokens") == USED}
    begun = [int(line.split()[0]) for line in ws.file("begun").splitlines()]
    assert total == sum(USED if token in told else RESERVED for token in begun)
    assert begun[-1] in told
