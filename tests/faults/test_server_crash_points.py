"""Kill -9 before each question that a worker or an attempt asks of the queue's server.

As ``test_crash_points``, whose driver and scenes these are: a first run lists the steps, then
somebody dies at each of them, and a new worker has to bring the task to its end.
"""

from __future__ import annotations

import re
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.away import DONE, TASK, Shared
from tests.faults.test_crash_points import AGENT, Scene, pid_file, play, steps_of
from tests.postgres import Databases
from tests.workspace import PATIENCE, wait_for

SHARES = 4  # for pytest-xdist to spread
#: One of them dies at any; where all die at once it is the attempt's that make the difference.
SCENES = (
    Scene("one of them dies", ("> ask",)),
    Scene("all die at once", ("^attempt: .*> ask",), how="all"),
)
#: What has to be among the steps.
KINDS = (
    "^worker: .*PostgresQueue.stale > .* ask #1 before",
    "^worker: .*PostgresQueue.claim > .* ask #1 before",
    "^worker: .*Attempts.settle_for .* ask #1 before",
    "^attempt: .*PostgresQueue.take_over > .* ask #1 before",
    "^attempt: .*PostgresQueue.renew > .* ask #1 before",
    "^attempt: .*PostgresQueue.settle > .* ask #1 before",
)


@contextmanager
def workspace(path: Path, postgres: Databases) -> Iterator[Shared]:
    """A workspace with one task in a database of its own; its processes are ended."""
    path.mkdir()
    with postgres.fresh() as url:
        ws = Shared(path, url)
        ws.init()
        now = {"base": 0, "cap": 0}
        ws.write_config(builder={"script": AGENT, "backoff": now, "stop_budget": 0.1})
        ws.fill(TASK)
        try:
            yield ws
        finally:
            ws.end()


Recorded = Callable[[Scene], list[str]]


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, postgres: Databases) -> Recorded:
    """Gives the steps of a scene, listed by a run in which nobody dies."""
    known: list[str] = []

    def look(scene: Scene) -> list[str]:
        if not known:
            folder = tmp_path_factory.mktemp("recorded") / "ws"
            with workspace(folder, postgres) as ws:
                known.extend(steps_of(ws, SCENES[0]))
        return [step for step in known if any(re.search(each, step) for each in scene.wanted)]

    return look


@pytest.fixture
def here(tmp_path: Path, postgres: Databases) -> tuple[Path, Databases]:
    """Where workspaces and their databases are made."""
    return tmp_path, postgres


def test_questions_of_every_kind_are_died_at(recorded: Recorded) -> None:
    """The list is made by a run: it may not have lost what the promises are about."""
    steps = recorded(SCENES[0])
    for kind in KINDS:
        assert any(re.search(kind, step) for step in steps), f"{kind}: {steps}"


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_death_at_any_question_loses_nothing(
    here: tuple[Path, Databases],
    recorded: Recorded,
    subtests: pytest.Subtests,
    scene: Scene,
    share: int,
) -> None:
    """One agent at a time, the task ends once, and what died counts once at most.

    Broken once by an ``Attempts.recover`` that passed over all: stuck.
    """
    steps = recorded(scene)
    assert steps
    for number, step in enumerate(steps):
        if zlib.crc32(step.encode()) % SHARES == share:
            path, postgres = here
            with subtests.test(step), workspace(path / str(number), postgres) as ws:
                play(ws, scene, step)
                mend(ws)
                look_at(ws, step)


def mend(ws: Shared) -> None:
    """A new worker brings the task to its end, and leaves when it is asked."""
    worker = ws.start("--role", "builder", *pid_file(ws))
    wait_for(lambda: ws.count(" started\n") and ws.status() == DONE and not ws.leases(), ws.log())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(PATIENCE) == 0


def look_at(ws: Shared, step: str) -> None:
    """No process is left, no two agents met, and the numbers of attempts are right."""
    assert not (ws.path / "overlap").exists()
    wait_for(lambda: ws.tree() == [], "no process of an attempt is left")
    runs = [tuple(map(int, line.split())) for line in ws.file("begun").splitlines()]
    tokens = [token for token, _ in runs]
    assert tokens == sorted(set(tokens))
    assert len(runs) <= 2
    counted = runs[-1][1] - 1
    if "Attempt.settle" in step:
        assert (len(runs), counted) == (2, 1), ws.log()
    if "Attempt.run_agent" in step:  # its agent may have died before it said that it began
        assert counted == 1, ws.log()
    assert counted <= 1
