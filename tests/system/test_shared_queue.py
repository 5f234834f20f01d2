"""One queue on PostgreSQL for several machines: cut off, switched off, and without it."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from daemon.attending import RETURN
from tests.fleet import build
from tests.machines import Many, Member, reachable, switched_on
from tests.postgres import Server
from tests.system.conftest import Machine
from tests.workspace import PATIENCE, wait_for

NAMES = ("one", "two", "three")
WIP = 3
TASKS, LATER = 300, 90  # of these, so many come when all machines are there again
AWAY = 60  # of the test in which the server is away
TTL = 10  # seconds that a lease lives
OVER = TTL + RETURN  # until somebody else has what a lost machine had
OUTAGE = 20.0  # seconds
PASSWORD = "kept in ~/.pgpass alone"  # noqa: S105  # of a server that the test starts
#: Says in the machine's own record what it does, by the one clock of the test bed. It takes one of
#: the files in ``hold`` where there is one, and does not end before that is gone.
AGENT = """
cat >/dev/null
say() { echo "$ROLECALL_TASK_ID $ROLECALL_TOKEN $1 $(date +%s.%N)" >>record; }
say began
for each in hold/*; do
    if mv "$each" "held/$ROLECALL_TASK_ID" 2>/dev/null; then
        while [ -e "held/$ROLECALL_TASK_ID" ]; do sleep 0.1; say lives; done
        break
    fi
done
sleep 0.03
say ended
"""
LOGINS = {"deploy": "rolecall_worker", "olga": "rolecall_operator"}
LOST = re.compile(r"(T\d+) \(token \d+\): lost, nothing was written")


class Run(NamedTuple):
    """One run of the agent, from its first word to its last."""

    task: str
    began: float
    ended: float


class Shared:
    """A queue in a database, and the machines whose workers share it."""

    def __init__(self, many: Many, server: Server) -> None:
        self.many, self.server = many, server
        self.since = f" --since=@{time.time():.6f}"
        self.owner = server.create("shop")
        gateway = many.members["one"].machine.gateway
        self.url = f"postgresql://{gateway}:{server.port}/shop"
        many.do_here("queue.init", f"--queue={self.owner}")
        self.kept = self.connect()
        for name, group in LOGINS.items():
            self.kept.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' IN ROLE {group}")

    def configure(self, ttl: float) -> None:
        """What the operator's inventory says; ``ttl``: how many seconds a lease lives."""
        role = {"script": AGENT, "on_success": "done", "wip_limit": WIP, "timeout": 120}
        role |= {"heartbeat": 2, "lease_ttl": ttl}
        self.many.configure({"builder": role}, queue=self.url)

    def connect(self) -> Any:
        """As the owner, by the server's socket: nothing on the network is in its way."""
        import psycopg  # noqa: PLC0415  # an extra: without it there is no server, and no test

        return psycopg.connect(self.owner, autocommit=True)

    def count(self, condition: str, *values: Any) -> int:
        """How many tasks are so."""
        if self.kept.closed:  # the server was away
            self.kept = self.connect()
        query = f"SELECT count(*) FROM rolecall.task WHERE {condition}"  # noqa: S608  # ours
        return int(self.kept.execute(query, values).fetchone()[0])

    def done(self, *tasks: str) -> bool:
        return self.count("status = 'done' AND id = ANY (%s)", [*tasks]) == len(tasks)

    def wait_done(self, many: int) -> None:
        """Wait for as long as there are more of them again and again."""
        done = 0
        while done < many:
            try:
                done = wait_for(partial(self.more_done, done), f"more than {done} tasks done")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.said()}") from None

    def more_done(self, than: int) -> int:
        found = self.count("status = 'done'")
        return found if found > than else 0

    def said(self) -> str:
        """What is held, and the last words of each machine, for whoever mends a test."""
        lines = [self.many.do_here("queue.list", "--standing=held")]
        for member in self.many.members.values():
            lines += [member.sh("journalctl --user -n 40 -o short-precise")]
        return "\n".join(lines)

    def add(self, first: int, last: int) -> None:
        """As an operator does, from her own machine."""
        file = self.many.folder / "new.json"
        file.write_text(json.dumps([build(f"T{number}") for number in range(first, last + 1)]))
        self.many.do_here("queue.add", f"--json={file}")

    @contextmanager
    def sampled(self) -> Iterator[dict[str, int]]:
        """The most that were ever seen at once: ``live`` leases, and ``held`` tasks."""
        most, ended = {"live": 0, "held": 0}, threading.Event()

        def look() -> None:
            with closing(self.connect()) as owner:
                while not ended.wait(0.05):
                    found = owner.execute(
                        "SELECT count(*) FILTER (WHERE owner IS NOT NULL AND"
                        " heartbeat_at + make_interval(secs => ttl) > rolecall.now()), count(*)"
                        " FROM rolecall.task WHERE status = 'in_progress'"
                    ).fetchone()
                    for name, number in zip(("live", "held"), found, strict=True):
                        most[name] = max(most[name], number)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield most
        finally:
            ended.set()
            thread.join()

    def pids(self, *names: str) -> dict[str, str]:
        """The workers' processes, asked without the network."""
        ask = "systemctl --user show -p MainPID --value agent-builder"
        return {name: self.many.members[name].sh(ask).strip() for name in names}

    def that_know_the_password(self, name: str) -> list[str]:
        """Files, and processes by their command lines and environments."""
        places = ". /proc/[0-9]*/cmdline /proc/[0-9]*/environ"
        script = f"cut -d: -f5 .pgpass | grep -rlF -f - {places} 2>/dev/null || :"
        return self.many.members[name].sh(script).split()

    def hold(self, name: str, many: int) -> list[str]:
        """Have so many attempts on a machine not end by themselves; their tasks, once they run."""
        member = self.many.members[name]
        member.sh(f"cd work && rm -f held/* && touch $(seq -f hold/%g {many})")
        member.sh(until(f"[ $(ls work/held | wc -l) = {many} ]", 2 * PATIENCE))
        return member.sh("ls work/held").split()

    def let_go(self, name: str, task: str) -> None:
        """The agent on that task ends."""
        self.many.members[name].sh(f"rm work/held/{task}")

    def runs(self, name: str) -> list[Run]:
        """All runs of the agent on a machine."""
        told: dict[tuple[str, str], list[float]] = {}
        for line in self.many.members[name].sh("cat work/record 2>/dev/null || :").splitlines():
            task, token, what, when = line.split()
            assert (what == "began") == ((task, token) not in told), f"{name}: {line}: twice"
            told.setdefault((task, token), []).append(float(when))
        return [Run(task, times[0], times[-1]) for (task, _), times in told.items()]

    def all_runs(self) -> list[Run]:
        """Those on all machines."""
        return [run for name in self.many.members for run in self.runs(name)]

    def wait_more(self, name: str) -> None:
        """Wait until one more agent is started on a machine."""
        member = self.many.members[name]
        known = int(member.sh("cat work/record 2>/dev/null | wc -l"))
        member.sh(until(f"tail -n +{known + 1} work/record | grep -q began", PATIENCE))

    def journal(self, name: str) -> list[dict[str, str]]:
        """What the workers and attempts of a machine have told."""
        member = self.many.members[name]
        said = member.sh("journalctl --user -o json SYSLOG_IDENTIFIER=rolecall" + self.since)
        return [json.loads(line) for line in said.splitlines()]

    def lost(self, name: str) -> set[str]:
        """The tasks of which attempts on a machine have told that nothing of theirs counts."""
        found = (LOST.match(event["MESSAGE"]) for event in self.journal(name))
        return {match[1] for match in found if match}

    def recovered(self, name: str) -> set[str]:
        """The tasks that a worker on a machine has taken from attempts that were gone."""
        told = [each for each in self.journal(name) if "its lease ran out" in each["MESSAGE"]]
        return {event["ROLECALL_TASK"] for event in told}

    def settled(self) -> Counter[str]:
        """How often each task's success was written, as the machines tell it."""
        return Counter(
            event["ROLECALL_TASK"]
            for name in self.many.members
            for event in self.journal(name)
            if event.get("ROLECALL_OUTCOME") == "success"
        )


def until(condition: str, seconds: float) -> str:
    """A script that waits in the machine: to ask from here again and again would be a load."""
    return f"timeout {seconds:g} sh -c 'until {condition}; do sleep 0.1; done'"


def most_at_once(runs: Iterable[Run]) -> int:
    """How many agents have run at the same time."""
    changes = [each for run in runs for each in ((run.began, 1), (run.ended, -1))]
    return max(itertools.accumulate(change for _, change in sorted(changes)))


def overlaps(runs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Agents that were at work on the same task at the same time."""
    pairs = itertools.pairwise(sorted(runs))
    return [(a, b) for a, b in pairs if a.task == b.task and b.began < a.ended]


@pytest.fixture(scope="module")
def members(testbed: Callable[[str], Machine]) -> Iterator[dict[str, Member]]:
    """Three machines that share nothing with this one but its /usr and /etc."""
    with switched_on({name: testbed(name) for name in NAMES}, "--ssh") as made:
        for member in made.values():
            member.sh("git init --quiet work && mkdir work/hold work/held")
            member.write(".pgpass", f"*:*:*:deploy:{PASSWORD}\n")
            member.sh("chmod 600 .pgpass")
        yield made


@pytest.fixture
def many(members: dict[str, Member], tmp_path: Path) -> Iterator[Many]:
    """The operator, who has a login of her own."""
    made = Many(tmp_path, members)
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:*:*:olga:{PASSWORD}\n")
    passfile.chmod(0o600)
    made.configure({"builder": {"script": AGENT}})
    made.environ |= {"PGUSER": "olga", "PGPASSFILE": str(passfile)}
    yield made
    for member in members.values():
        member.sh("rm -rf work/record work/hold/* work/held/* work/.a*")


@pytest.fixture
def shared(many: Many, servers: Callable[..., Server]) -> Iterator[Shared]:
    """A server that the machines reach over the network, with logins that may do little."""
    gateway = many.members["one"].machine.gateway
    made = Shared(many, servers(settings={"listen_addresses": f"127.0.0.1,{gateway}"}))
    yield made
    made.many.do("uninstall")  # the workers leave the server before it ends
    made.kept.close()


def test_three_machines_share_a_queue_through_a_cut_and_a_power_cut(shared: Shared) -> None:
    """Each task is done once, and never more than the WIP limit at the same time.

    What a lost machine had is done by another when its leases have run out; a machine that is there
    again goes on by itself, in seconds.
    """
    many, one, two = shared.many, *(shared.many.members[name] for name in ("one", "two"))
    shared.configure(ttl=TTL)
    many.do("install")
    many.do("agents.start", "--limit", "one,two")
    with shared.sampled() as most:
        shared.add(1, TASKS - LATER)
        shared.wait_done(TASKS // 10)

        # One is cut off, and of two attempts there one ends meanwhile.
        on_one, pids = shared.hold("one", 2), shared.pids("one")
        assert shared.that_know_the_password("one") == ["./.pgpass"]
        one.machine.cut()
        shared.let_go("one", on_one[0])
        wait_for(lambda: shared.done(*on_one), "what one had is done by two", OVER + PATIENCE)
        one.machine.heal()
        shared.wait_more("one")
        wait_for(lambda: shared.lost("one") >= {*on_one}, "one's late results refused")
        assert shared.pids("one") == pids

        # Two loses its power, with all that may be at work in its hands.
        on_two = shared.hold("two", WIP)
        two.machine.kill()
        wait_for(lambda: shared.done(*on_two), "what two had is done by one", OVER + PATIENCE)
        assert shared.recovered("one") >= {*on_two}
        two.machine.up("--ssh", shown=())
        reachable(many, "two")

        # All are there in the end; three, too, which comes late.
        many.do("agents.start", "--limit", "three")
        before = {name: len(shared.runs(name)) for name in NAMES}
        shared.add(TASKS - LATER + 1, TASKS)
        shared.wait_done(TASKS)
    assert (most["live"], most["held"]) == (WIP, WIP)
    runs = shared.all_runs()
    assert most_at_once(runs) == WIP
    assert overlaps(runs) == []
    assert shared.settled() == Counter(f"T{number}" for number in range(1, TASKS + 1))
    assert all(len(shared.runs(name)) > before[name] for name in NAMES)


def test_a_server_that_is_away_under_load(shared: Shared) -> None:
    """No worker exits, and no attempt is in vain."""
    many, names = shared.many, ("one", "two")
    shared.configure(ttl=3 * OUTAGE)
    many.do("install", "--limit", "one,two")
    many.do("agents.start", "--limit", "one,two")
    shared.add(1, AWAY)
    shared.wait_done(AWAY // 4)
    before = shared.pids(*names)
    assert shared.count("status IN ('ready', 'in_progress')") > WIP
    shared.kept.close()
    shared.server.stop()
    back = time.monotonic() + OUTAGE
    wait_for(lambda: time.monotonic() >= back, "the outage to have lasted", 2 * OUTAGE)
    assert shared.pids(*names) == before
    shared.server.start()
    shared.wait_done(AWAY)
    assert shared.pids(*names) == before
    every = Counter(f"T{number}" for number in range(1, AWAY + 1))
    assert Counter(run.task for run in shared.all_runs()) == every
    assert shared.settled() == every
