"""Hosts that lack something: each says so, and what to type; typed, it mends it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from tests.fleet import Done, Fleet, Inside
from tests.system.conftest import Machine
from tests.workspace import wait_for

BUILDER = {"builder": {"script": "cat >/dev/null", "stop_budget": 0.5}}
ROOTS = "XDG_RUNTIME_DIR=/run/user/0 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/0/bus"
NONE = "-u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS"
#: Sessions end at once, nobody may turn lingering on, and dbus-user-session is not installed.
EVENING = """
mkdir -p /etc/systemd/logind.conf.d /etc/systemd/user
printf '[Login]\\nUserStopDelaySec=0\\n' >/etc/systemd/logind.conf.d/soon.conf
systemctl mask --now polkit.service
systemctl restart systemd-logind
ln -s /dev/null /etc/systemd/user/dbus.socket
"""


class Account:
    """Another account of a machine, by plain runuser: with root's environment."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def __call__(self, script: str) -> Done:
        there = f'cd ~{self.name} && HOME=$PWD exec runuser -u {self.name} -- sh -c "$0"'
        return self.machine.run("sh", "-c", there, script, root=True, check=False)


class Session:
    """A login session for each script: it is over when the script is."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __call__(self, script: str) -> Done:
        return self.machine.run("su", "-", "deploy", "-c", script, root=True, check=False)


@pytest.fixture(scope="module")
def place(testbed: Callable[[str], Machine]) -> Iterator[Machine]:
    """A machine of this module's own: root breaks and mends it."""
    made = testbed("places")
    made.up()
    made.run("mkdir", "-m", "700", "/run/user/0", root=True)  # as where root is logged in
    yield made
    made._testbed("down", made.name)


@pytest.fixture(scope="module")
def inside(place: Machine) -> Iterator[Inside]:
    made = Inside(place)
    yield made
    made.close()


@pytest.fixture
def fleet(inside: Inside) -> Iterator[Fleet]:
    made = Fleet(inside, "auto")
    made.configure(BUILDER)
    made.do("install")
    yield made
    made.do("uninstall")
    made.sh(f"rm -rf {made.workspace} {made.inventory}")


def as_root(machine: Machine, said: str) -> str:
    """Type what a message tells root to; returns what that prints."""
    found = re.search(r"as root: ([^(;\n]*)", said)
    assert found, said
    return machine.run("sh", "-c", found[1], root=True).stdout


def doctor(fleet: Fleet, check: str, state: str, env: str = "") -> list[dict[str, str]]:
    found = json.loads(fleet.invoke("doctor", "--json", env=env).stdout)
    return [each for each in found if (each["check"], each["state"]) == (check, state)]


def test_the_way_to_the_manager_is_found(fleet: Fleet) -> None:
    """Where nobody names it (cron, sshd without PAM), and where root's is left over (runuser)."""
    fleet.do("agents.start")
    for environ, told in ((NONE, "is not set"), (ROOTS, "is /run/user/0, which is not deploy's")):
        done = fleet.invoke("agents.status", env=environ)
        assert (done.returncode, "running" in done.stdout) == (0, True), done.stdout
        (found,) = doctor(fleet, "supervisor", "warn", env=environ)
        assert told in found["what"]
        assert found["hint"] == "export XDG_RUNTIME_DIR=/run/user/2000"
    plain = fleet.shell(f"env {ROOTS} systemctl --user is-active agent-builder")
    assert "Permission denied" in plain.stderr


def test_a_journal_in_memory_is_made_up_for(place: Machine, fleet: Fleet) -> None:
    """Then no account may read it: the workers' own files are shown, and why a start failed."""
    place.run("sh", "-c", "rm -r /var/log/journal; systemctl restart systemd-journald", root=True)
    fleet.do("agents.start")
    shown = fleet.invoke("agents.logs")
    assert shown.returncode == 1
    assert shown.stdout.endswith(" builder started\n")
    assert "deploy may not read the journal, which is not kept on disk" in shown.stderr
    (found,) = doctor(fleet, "journal", "warn")
    assert found["hint"] in shown.stderr
    place.run("mv", "/usr/bin/journalctl", "/usr/bin/gone", root=True)
    without = fleet.invoke("agents.logs")
    place.run("mv", "/usr/bin/gone", "/usr/bin/journalctl", root=True)
    assert (without.returncode, without.stdout) == (1, shown.stdout)
    assert "error: journalctl cannot be run: No such file" in without.stderr

    fleet.do("agents.stop")
    fleet.sh("echo nonsense: 1 >>.config/rolecall/agent.yml")
    done = fleet.invoke("agents.start")
    assert done.returncode == 1
    why, journal = done.stdout.splitlines()[1:]
    assert "/.config/rolecall/agent.yml:" in why
    assert why.strip() in as_root(place, journal)
    assert fleet.rows()["builder"]["text"] == why.strip()

    as_root(place, shown.stderr)
    fleet.do("install")
    fleet.do("agents.start")
    wait_for(lambda: "started" in fleet.do("agents.logs"), "the journal of the worker")
    assert doctor(fleet, "journal", "ok")


def test_an_account_without_a_journal_of_its_own_reads_it_as_a_member(place: Machine) -> None:
    """Accounts below 1000 have none, even on disk."""
    place.run("useradd", "-rm", "-u", "555", "-s", "/bin/sh", "service", root=True)
    place.run("loginctl", "enable-linger", "service", root=True)
    fleet = Fleet(Account(place, "service"), "auto")
    fleet.configure(BUILDER)
    said = fleet.do("install")
    assert "note: service may not read the journal" in said
    fleet.do("agents.start")
    assert fleet.invoke("agents.logs").returncode == 1
    as_root(place, said)
    assert "started" in fleet.do("agents.logs")
    assert "note" not in fleet.do("uninstall")
    place.run("loginctl", "disable-linger", "service", root=True)


def test_without_linger_all_ends_with_the_session(testbed: Callable[[str], Machine]) -> None:
    """That is told before and after. Without a manager all is stopped, and can be uninstalled."""
    machine = testbed("evening")
    machine.up("--no-linger")
    machine.sh(EVENING, root=True)
    inside = Inside(machine)
    try:
        fleet = Fleet(inside, "auto")
        fleet.configure(BUILDER)
        refused = fleet.invoke("install")
        assert refused.returncode == 4
        assert "does not run: lingering is off, and nobody is logged in" in refused.stderr
        assert fleet.shell("ls .config").returncode, "nothing was written"

        done = Session(machine)(
            "; ".join(map(fleet.typed, ("install", "agents.start", "agents.status", "doctor")))
        )
        assert "note: lingering is off (" in done.stdout
        assert "deploy has no session bus, without which no attempt can be started" in done.stdout
        assert "running" in done.stdout
        assert "lingering is off: it ends soon after the last logout" in done.stdout

        wait_for(lambda: fleet.shell("ls /run/user/2000").returncode, "the end of the session")
        row = fleet.rows()["builder"]
        assert row["state"] == "stopped"
        assert fleet.do("agents.stop") == "localhost: builder: not running\n"
        assert fleet.invoke("agents.start").returncode == 4

        as_root(machine, row["text"])
        wait_for(lambda: fleet.rows()["builder"]["state"] == "running", "the worker, by linger")
        (found,) = doctor(fleet, "session bus", "fail")
        machine.run("rm", "/etc/systemd/user/dbus.socket", root=True)  # as if it were installed
        fleet.sh(f"export XDG_RUNTIME_DIR=/run/user/2000; {found['hint'].partition('then: ')[2]}")
        assert doctor(fleet, "session bus", "fail") == []

        machine.run("loginctl", "disable-linger", "deploy", root=True)
        wait_for(lambda: fleet.shell("ls /run/user/2000").returncode, "the end of the manager")
        assert "removed" in fleet.do("uninstall")
        assert fleet.sh("find .config .local -type f -o -type l || true") == ""
        assert fleet.rows()["builder"]["state"] == "not installed"
    finally:
        inside.close()
        machine._testbed("down", machine.name)


def test_without_systemd_cron_starts_the_workers(bare_machine: Machine) -> None:
    """That nothing else does is noted at install; the doctor has the line, which a boot runs."""
    inside = Inside(bare_machine)
    try:
        fleet = Fleet(inside, "auto", "work-50%")
        fleet.configure({**BUILDER, "tester": {"script": "true"}})
        assert "note: nothing starts pid-file workers again" in fleet.do("install")
        (found,) = doctor(fleet, "supervisor", "ok")
        line = found["hint"].partition("@reboot ")[2].replace("\\%", "%")  # as cron reads it
        fleet.do("agents.start")
        bare_machine.kill()
        bare_machine.up()
        rows = fleet.rows().values()
        assert {row["state"] for row in rows} == {"failed"}
        fleet.sh(line)
        states = ["running", "running"]
        wait_for(lambda: [row["state"] for row in fleet.rows().values()] == states, "both workers")
        assert "already running" in fleet.do("agents.start")
        fleet.do("uninstall")
        assert fleet.sh("find .config -type f || true") == ""

        fleet.configure(BUILDER, supervisor="systemd")
        done = fleet.invoke("install")
        assert done.returncode == 4
        assert "systemd does not run this host" in done.stderr
    finally:
        inside.close()
