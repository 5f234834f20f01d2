"""Units on a machine with real systemd, as an unprivileged user: what they do, by effect."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fleet import LONG_AGENT, Fleet, Inside, build
from tests.system.conftest import Machine
from tests.workspace import ROOT, wait_for

HIGHEST_EXPOSURE = "--threshold=40"  # 4.0
OWN_TMP = ["/tmp/made", "/var/tmp/made"]  # noqa: S108  # the attempt's own
ATTEMPT = "rolecall-attempt-T1-1"
BUILDER = {"builder": {"script": LONG_AGENT, "stop_budget": 0.5}}


@pytest.fixture(scope="module")
def place(testbed: Callable[[str], Machine]) -> Iterator[Machine]:
    """A machine of this module's own: it loses power."""
    made = testbed("units")
    made.up()
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
    yield made
    done = made.invoke("uninstall")
    made.sh(f"rm -rf {made.workspace} {made.inventory}")
    assert done.returncode == 0, done.stderr


def running(fleet: Fleet, roles: dict[str, dict[str, Any]]) -> int:
    """Install and start them, with a task; returns the agent's pid."""
    fleet.configure(roles)
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    return fleet.agent()


def shown(fleet: Fleet, unit: str, name: str) -> str:
    return fleet.sh(f"systemctl --user show --property={name} --value {unit}").strip()


def exposure(fleet: Fleet, unit: str) -> str:
    return fleet.sh(f"systemd-analyze --user security --no-pager {HIGHEST_EXPOSURE} {unit}")


def test_worker_and_running_attempt_are_exposed_little(fleet: Fleet) -> None:
    """``systemd-analyze security`` rates both at 4.0 or less, and nothing in them is ignored."""
    running(fleet, BUILDER)
    for unit in ("agent-builder", ATTEMPT):
        assert "Overall exposure level" in exposure(fleet, f"{unit}.service")
        assert shown(fleet, unit, "PrivateUsers") == "yes"  # without it, the rest does nothing
        assert shown(fleet, unit, "Slice") == "agents.slice"
    files = ("agent-builder.service", "agents.target", "agents.slice")
    for name in files:
        path = f".config/systemd/user/{name}"
        done = fleet.shell(f"systemd-analyze --user verify {path}")
        assert (done.returncode, done.stderr) == (0, "")


def test_an_attempt_writes_where_it_may_and_nowhere_else(place: Machine, fleet: Fleet) -> None:
    """The workspace, a /tmp of its own and write_paths; neither the rest of HOME nor the system."""
    tries = ["here", "$HOME/.cache/made", *OWN_TMP, "$HOME/made", "/etc/made"]
    tries += ["/usr/made", "/run/user/2000/made", "$HOME/.config/systemd/user/made.service"]
    script = "cat >/dev/null; exec 2>/dev/null; "
    script += "; ".join(f'(: >"{path}") && echo "{path}" >>tried' for path in tries)
    script += "; ls /tmp >seen; git init -q sub && echo git >>tried; python3 -c 1 && echo python"
    script += " >>tried; mv tried done"
    fleet.sh("mkdir -p .cache; touch /tmp/of-the-machine")
    fleet.configure({"builder": {"script": script, "write_paths": ["~/.cache"]}})
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    wrote = wait_for(lambda: fleet.shell("cat work/done").stdout, "the agent's answer").split()
    home = "/home/deploy"
    made = ["here", f"{home}/.cache/made", *OWN_TMP, "git", "python"]
    assert wrote == made
    ours = {ROOT.parts[2]} if ROOT.parts[1] == "tmp" else set()  # a checkout there stays in sight
    assert set(fleet.sh("cat work/seen").split()) - ours == {"made"}
    assert "made" not in place.sh("ls /tmp /var/tmp").stdout.split()
    fleet.sh("rm /tmp/of-the-machine .cache/made")


def test_a_worker_writes_the_workspace_only_and_sees_no_network(
    place: Machine, fleet: Fleet
) -> None:
    """Looked at from inside its namespaces."""
    fleet.configure(BUILDER)
    fleet.do("install")
    fleet.do("agents.start")
    worker = fleet.rows()["builder"]["pid"]
    inside = ["nsenter", f"--target={worker}", "--user", "--mount", "--net", "--setuid=2000"]
    inside += ["--setgid=2000", "--", "sh", "-c"]

    def can(script: str) -> bool:
        return place.run(*inside, script, root=True, check=False).returncode == 0

    assert can("touch /home/deploy/work/made")
    for path in ("/home/deploy/made", "/etc/made", "/home/deploy/.config/made"):
        assert not can(f"touch {path}")
    assert can("ls /home/deploy/.config/rolecall/agent.yml")
    assert can("test $(ls /sys/class/net | wc -l) = 1 || test $(wc -l </proc/net/dev) = 3")


def test_limits_are_those_of_the_role(fleet: Fleet) -> None:
    """They are the attempt's; the worker has none."""
    limits = {"memory_max": "64M", "cpu_quota": "150%", "tasks_max": 50}
    running(fleet, {"builder": {**BUILDER["builder"], "limits": limits}})
    assert shown(fleet, ATTEMPT, "MemoryMax") == str(64 << 20)
    assert shown(fleet, ATTEMPT, "CPUQuotaPerSecUSec") == "1.500000s"
    assert shown(fleet, ATTEMPT, "TasksMax") == "50"
    assert shown(fleet, "agent-builder", "MemoryMax") == "infinity"


def test_no_secret_and_no_task_text_is_in_a_unit(fleet: Fleet) -> None:
    """Neither what env_file holds, nor what the task says."""
    fleet.write("work.env", "TOKEN=swordfish\n")
    fleet.sh("chmod 600 work.env")
    fleet.configure({"builder": {**BUILDER["builder"], "env_file": "~/work.env"}})
    fleet.write_queue(build(title="melange"))
    fleet.do("install")
    fleet.do("agents.start")
    agent = fleet.agent()
    said = fleet.sh(
        f"systemctl --user show --all {ATTEMPT} agent-builder; cat .config/systemd/user/agent*.*ce"
    )
    said += fleet.sh("systemctl --user cat 'agent*' 'rolecall*'; cat .config/rolecall/*")
    assert "swordfish" in fleet.sh(f"tr '\\0' '\\n' </proc/{agent}/environ")
    assert "swordfish" not in said
    assert "melange" not in said
    fleet.sh("rm work.env")


def test_systemctl_stops_and_starts_as_an_administrator_expects(fleet: Fleet) -> None:
    """``stop 'agent-*'`` drains all; the target starts them; nothing else is in the slice."""
    agent = running(fleet, {**BUILDER, "tester": {"script": "true"}})
    fleet.sh("systemctl --user stop 'agent-*'")
    assert not fleet.alive(agent)
    assert fleet.task()["status"] == "ready"
    assert fleet.shell("systemctl --user is-active agent-builder").stdout == "inactive\n"
    assert fleet.sh("systemctl --user list-units --plain --no-legend 'rolecall*'") == ""
    fleet.sh("systemctl --user start agent-builder")
    assert fleet.sh("systemctl --user is-active agent-builder") == "active\n"
    fleet.sh("systemctl --user stop agents.target")
    assert fleet.shell("systemctl --user is-active agent-builder").returncode == 3
    fleet.sh("systemctl --user start agents.target")
    fleet.sh("systemctl --user is-active agent-builder agent-tester")
    before = shown(fleet, "agent-builder", "MainPID")
    fleet.sh("systemctl --user reload agent-builder")
    wait_for(
        lambda: "config read again" in fleet.sh("journalctl --user -u agent-builder"), "the re-read"
    )
    assert shown(fleet, "agent-builder", "MainPID") == before


def test_the_journal_of_the_worker_tells_the_whole_story(fleet: Fleet) -> None:
    """What its attempts say is there, too."""
    fleet.configure({"builder": {"script": "cat >/dev/null"}})
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    fleet.wait_status("awaiting_test")

    def story() -> str:
        return fleet.sh("journalctl --user -u agent-builder")

    wait_for(lambda: "in_progress -> awaiting_test" in story(), "the end of the attempt")
    assert "ready -> in_progress" in story()


def test_the_journal_has_each_change_once_with_its_fields(fleet: Fleet) -> None:
    """Who, which task, from, to, why, attempt, token, how long: for programs, too."""
    fleet.configure({"builder": {"script": "cat >/dev/null"}})
    fleet.write_queue(build("J1"))
    fleet.do("install")
    fleet.do("agents.start")
    fleet.wait_status("awaiting_test", "J1")
    fleet.do("queue.cancel", "J1")

    def events() -> list[dict[str, Any]]:
        text = fleet.sh("journalctl --user --output=json ROLECALL_TASK=J1")
        return [json.loads(line) for line in text.splitlines()]

    told = wait_for(lambda: found if len(found := events()) >= 3 else [], "three events")
    assert [(each["ROLECALL_FROM"], each["ROLECALL_TO"]) for each in told] == [
        ("ready", "in_progress"),
        ("in_progress", "awaiting_test"),
        ("awaiting_test", "cancelled"),
    ]
    claim, settled, cancelled = told
    assert (claim["ROLECALL_TOKEN"], claim["ROLECALL_ATTEMPT"]) == ("1", "1")
    assert claim["_SYSTEMD_USER_UNIT"] == "agent-builder.service"
    assert (settled["ROLECALL_OUTCOME"], settled["USER_UNIT"]) == (
        "success",
        "agent-builder.service",
    )
    assert float(settled["ROLECALL_SECONDS"]) >= 0
    assert cancelled["ROLECALL_WHY"] == f"cancelled by {cancelled['ROLECALL_OWNER']}"
    assert cancelled["ROLECALL_OWNER"].startswith("deploy@")


def test_nothing_outlives_its_attempt(place: Machine, fleet: Fleet) -> None:
    """A child without our environment, in a session of its own, whose parent is gone."""
    script = "cat >/dev/null; setsid env -i sh -c 'sleep 4711 & exit' & sleep 0.2; touch left"
    fleet.configure({"builder": {"script": script}})
    fleet.write_queue(build())
    fleet.do("install")
    fleet.do("agents.start")
    fleet.wait_status("awaiting_test")
    wait_for(
        lambda: not fleet.sh("systemctl --user list-units --plain --no-legend 'rolecall*'"), "end"
    )
    assert place.run("pgrep", "-f", "sleep 4711", check=False).stdout == ""


def test_a_stopped_worker_is_replaced_by_the_watchdog(fleet: Fleet) -> None:
    """One that gives no sign of life is killed and started again; its attempt works on.

    A drop-in, which an install leaves alone, makes the wait short.
    """
    drop_in = ".config/systemd/user/agent-builder.service.d/short.conf"
    fleet.write(drop_in, "[Service]\nWatchdogSec=1\nRestartSec=0\n")
    agent = running(fleet, BUILDER)
    assert fleet.do("install") == "localhost: nothing to do\n"
    worker = fleet.rows()["builder"]["pid"]
    fleet.sh(f"kill -STOP {worker}")
    wait_for(lambda: fleet.rows()["builder"]["restarts"] == 1, "another worker")
    assert fleet.alive(agent)
    fleet.do("uninstall")
    assert fleet.sh(f"cat {drop_in}").startswith("[Service]")
    fleet.sh("rm -r .config/systemd; systemctl --user daemon-reload")


def test_a_crash_loop_ends_in_failed(fleet: Fleet) -> None:
    """It is tried again ten times and then left alone; a start by hand counts anew."""
    drop_in = ".config/systemd/user/agent-builder.service.d/broken.conf"
    fleet.write(drop_in, "[Service]\nExecStart=\nExecStart=/bin/false\nRestartSec=0\n")
    fleet.configure(BUILDER)
    fleet.do("install")
    done = fleet.invoke("agents.start")
    assert done.returncode == 1
    wait_for(lambda: fleet.rows()["builder"]["state"] == "failed", "the end of the loop")
    assert int(shown(fleet, "agent-builder", "NRestarts")) <= 10
    assert fleet.invoke("agents.status").returncode == 3
    fleet.sh(f"rm -r $(dirname {drop_in}); systemctl --user daemon-reload")
    assert fleet.do("agents.start") == "localhost: builder: started\n"


def test_a_hand_edited_unit_is_shown_and_mended(fleet: Fleet) -> None:
    """And the manager is told to read it again, though only the next start uses it."""
    fleet.configure(BUILDER)
    fleet.do("install")
    path = ".config/systemd/user/agent-builder.service"
    fleet.sh(f"sed -i s/WatchdogSec=120/WatchdogSec=9/ {path}; systemctl --user daemon-reload")
    said = fleet.do("install", "--diff").splitlines()
    assert "-WatchdogSec=9" in said
    assert "+WatchdogSec=120" in said
    assert "localhost: reload the user manager" in said
    assert shown(fleet, "agent-builder", "NeedDaemonReload") == "no"
    assert "WatchdogSec=120" in fleet.sh("systemctl --user cat agent-builder")
    fleet.sh(f"sed -i 1,2d {path}")
    done = fleet.invoke("install")
    assert done.returncode == 78
    assert "that invoke install has not made" in done.stderr
    fleet.sh(f"rm {path}")


def test_a_role_that_no_longer_runs_here_loses_its_unit(fleet: Fleet) -> None:
    """Its worker is stopped, its unit disabled and removed."""
    fleet.configure({**BUILDER, "tester": {"script": "true"}})
    fleet.do("install")
    fleet.do("agents.start")
    fleet.configure(BUILDER)
    assert "removed ~/.config/systemd/user/agent-tester.service" in fleet.do("install").replace(
        "/home/deploy", "~"
    )
    assert fleet.shell("systemctl --user is-active agent-tester").stdout == "inactive\n"
    assert "tester" not in fleet.sh("find .config")


@pytest.mark.parametrize(
    "name",
    ["w s %h $HOME 'x' \"y\"", "/tmp/rolecall a:b/work"],  # noqa: S108  # the machine's own /tmp
    ids=["strange", "temporary"],
)
def test_any_path_will_do(fleet: Fleet, name: str) -> None:
    """Blanks, quotes, percent and dollar signs; and a workspace below /tmp, which units hide."""
    workspace = name if name.startswith("/") else f"/home/deploy/{name}"
    quoted = shlex.quote(workspace)
    fleet.sh(f"mkdir -p {quoted} && git init --quiet {quoted}")
    fleet.configure({"builder": {"script": "cat >/dev/null; pwd >where"}}, workspace=workspace)
    fleet.write(f"{workspace}/.oodatcaa/work/SPRINT_QUEUE.json", json.dumps({"tasks": [build()]}))
    fleet.do("install")
    fleet.do("agents.start")
    found = wait_for(lambda: fleet.shell(f"cat {quoted}/where").stdout, "the agent's folder")
    assert found == workspace + "\n"
    fleet.do("uninstall")
    fleet.sh(f"rm -rf {quoted}")


def test_after_a_power_cut_all_runs_again(place: Machine, fleet: Fleet) -> None:
    """The worker starts at boot, and settles the attempt that the cut has ended as an error."""
    running(fleet, BUILDER)
    place.kill()
    place.up()
    wait_for(lambda: fleet.rows()["builder"]["state"] == "running", "the worker")
    wait_for(lambda: (fleet.lease() or {}).get("token") == 2, "the second attempt")
    assert fleet.task()["attempts"] == 1
    assert fleet.task()["status"] == "in_progress"


def test_a_sprint_outlives_power_cuts(place: Machine, fleet: Fleet) -> None:
    """The power fails three times while twelve tasks are worked on: in the end each is done.

    The queue can be read after every cut, no task was ever on two agents at once, and nothing
    of what the cuts interrupted is left.
    """
    script = (
        "cat >/dev/null; exec 9>>lock.$ROLECALL_TASK_ID; "
        "flock -n 9 || echo $ROLECALL_TASK_ID >>overlap; echo $ROLECALL_TASK_ID >>begun; sleep 1"
    )
    fleet.configure(
        {
            "builder": {
                "script": script,
                "wip_limit": 2,
                "interval": 1,
                "heartbeat": 0.5,
                "lease_ttl": 2,
                "max_attempts": 99,
                "breaker": {"failures": 0},
            }
        }
    )
    names = [f"T{number}" for number in range(12)]
    fleet.write_queue(*map(build, names))
    fleet.do("install")
    fleet.do("agents.start")

    def begun() -> int:
        return int(fleet.sh("cat work/begun 2>/dev/null | wc -l"))

    def statuses() -> dict[str, str]:
        tasks = json.loads(fleet.sh(f"cat {fleet.queue}"))["tasks"]
        return {task["id"]: task["status"] for task in tasks}

    for _ in range(3):
        more = begun() + 2
        wait_for(lambda: begun() >= more, "two more agents")  # noqa: B023  # called in this turn
        place.kill()
        place.up()
        assert set(statuses()) == set(names)

    wait_for(lambda: set(statuses().values()) == {"awaiting_test"}, "all at their ends", 90)
    wait_for(lambda: fleet.sh("ls -A work/.leases") == "", "no lease is left")
    assert fleet.sh("cat work/overlap 2>/dev/null; find work -name '.*.new'") == ""
    assert set(fleet.sh("cat work/begun").split()) == set(names)


def test_lingering_is_turned_on_and_off_again(testbed: Callable[[str], Machine]) -> None:
    """Where it is not allowed, who has to do it is said, and nothing else is in the way."""
    machine = testbed("dark")
    machine.up("--no-linger")
    inside = Inside(machine)
    try:
        fleet = Fleet(inside, "auto")
        fleet.configure(BUILDER)
        machine.run("systemctl", "mask", "--now", "polkit.service", root=True, check=False)
        assert "would enable lingering of deploy" in fleet.do("deploy", "--check")
        said = fleet.do("install", "--check")
        assert "would enable lingering of deploy" in said
        assert "would enable agent-builder.service" in said
        assert "note: whether deploy may turn lingering on is known only when it is tried" in said
        assert "session bus" not in said
        done = fleet.invoke("install")
        assert done.returncode == 4
        assert "as root: loginctl enable-linger deploy" in done.stderr
        machine.run("systemctl", "start", "user@2000", root=True)
        said = fleet.do("install")
        assert "note: lingering is off" in said
        assert "As root: loginctl enable-linger deploy" in said
        fleet.do("agents.start")
        fleet.do("uninstall")
        machine.run("systemctl", "unmask", "polkit.service", root=True, check=False)
        if machine.run("loginctl", "enable-linger", "deploy", check=False).returncode:
            pytest.skip("without polkit, only root may turn lingering on")
        machine.run("loginctl", "disable-linger", "deploy")
        assert "enable lingering of deploy" in fleet.do("install")
        assert "deploy" in machine.sh("ls /var/lib/systemd/linger").stdout
        assert fleet.do("install") == "localhost: nothing to do\n"
        assert "disable lingering of deploy" in fleet.do("uninstall")
        assert machine.sh("ls /var/lib/systemd/linger").stdout == ""
        assert machine.run("find", ".config", check=False).returncode == 1
    finally:
        inside.close()
        machine._testbed("down", machine.name)
