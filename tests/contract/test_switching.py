"""A host switched to another release, and back where that fails: by effect, on real workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.config import from_json
from daemon.fleet import onhost, place
from daemon.fleet.connection import Local
from tests.fleet import build
from tests.releases import DIES, EXITS, IGNORES, NEVER_READY, Copied
from tests.workspace import ROOT, wait_for

#: Works until it is told to end, and says once that it did.
PATIENT = "cat >/dev/null; echo $$ >agent.pid; until [ -e go ]; do sleep 0.05; done; echo >>ends"
QUIET: dict[str, dict[str, Any]] = {
    "builder": {"script": "cat >/dev/null"},
    "tester": {"script": "cat >/dev/null"},
}
#: As on a full disk, but for this process alone: a config has more than a kilobyte.
SMALL = ("sh", "-c", 'ulimit -f 1; exec env -u PWD "$0" "$@"')
BUSY = {**QUIET, "builder": {"script": PATIENT, "timeout": 120}}


@pytest.fixture
def host(home: Path) -> Iterator[Copied]:
    made = Copied(home)
    made.configure(QUIET)
    yield made
    done = made.invoke("uninstall")
    assert done.returncode == 0, done.stderr


def did(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["role"], each["did"]) for each in result["workers"]]


def cut_short(host: Copied) -> set[str | None]:
    """What the host's own status says of a deploy that was cut short."""
    asked = json.loads(host.asked(""))
    there = Local("web1", asked["checkout"])
    rows = onhost.perform(there, from_json(asked["config"]), "status", {}, print)
    return {row["deploy_cut_short"] for row in rows}


def newer(host: Copied) -> None:
    """Have its config be one that newer code wrote."""
    host.sh("""sed -i 's/^{$/{"news": 1,/' .config/rolecall/agent.yml""")
    assert host.sh("cat .config/rolecall/agent.yml").count("news") == 1


def switched(host: Copied) -> tuple[int, int]:
    """When its link to the release and its config were written."""
    config = host.home / ".config" / "rolecall" / "agent.yml"
    return (host.place / "current").lstat().st_mtime_ns, config.stat().st_mtime_ns


def pending(pid: int) -> set[int]:
    """The signals that a process was sent and has not taken."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    bits = int(next(line.split()[1] for line in lines if line.startswith("ShdPnd")), 16)
    return {number for number in range(1, 65) if bits >> number - 1 & 1}


def unlocked(host: Copied) -> list[str]:
    """Every file, with its time, but the lock, which says who had it last."""
    return [line for line in host.files().splitlines() if ".lock " not in line]


def test_a_first_deploy_starts_every_role(host: Copied) -> None:
    """What install would have written is there, and the workers stand in the release's folder."""
    first = host.release()
    result = host.deploy(first)
    assert (result["state"], result["before"], result["release"]) == ("deployed", None, first)
    assert did(result) == [("builder", "started"), ("tester", "started")]
    assert host.workers() == {"builder": first, "tester": first}
    assert host.links() == (first, None)
    assert host.files().count("agent.yml") == 1


def test_a_second_deploy_of_the_same_has_nothing_to_do(host: Copied) -> None:
    """The same pids; not a file has changed."""
    first = host.release()
    host.deploy(first)
    before, files = host.rows(), unlocked(host)
    result = host.deploy(first)
    assert (result["state"], result["changes"], did(result)) == ("nothing to do", [], [])
    assert {role: row["pid"] for role, row in host.rows().items()} == {
        role: row["pid"] for role, row in before.items()
    }
    assert unlocked(host) == files


def test_an_attempt_lives_through_a_deploy(host: Copied) -> None:
    """The same agent, under a new worker of the new release; its task ends once."""
    host.configure(BUSY)
    host.write_queue(build())
    first = host.release()
    host.deploy(first)
    agent = host.agent()
    second = host.release(version="2")
    result = host.deploy(second)
    assert (result["state"], result["before"], result["release"]) == ("deployed", first, second)
    assert did(result) == [("builder", "restarted"), ("tester", "restarted")]
    assert host.workers() == {"builder": second, "tester": second}
    assert host.links() == (second, first)
    assert host.alive(agent)
    host.sh("touch work/go")
    host.wait_status("ready_for_integrator")
    assert host.sh("cat work/ends") == "\n"


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (EXITS, "builder: not started\n  ended with exit status 1 before it was ready"),
        (DIES, "builder: died after it was ready"),
        (NEVER_READY, "builder: not started\n  not ready within"),
    ],
    ids=["exits", "dies", "never ready"],
)
def test_a_release_whose_workers_fail_is_put_back(host: Copied, how: str, why: str) -> None:
    """Links, config and workers are the old ones; the attempt lives through all of it."""
    host.configure(BUSY)
    host.write_queue(build())
    first = host.release()
    host.deploy(first)
    second = host.release(builder=how)
    agent, config = host.agent(), host.sh("cat .config/rolecall/agent.yml")
    host.configure({**BUSY, "builder": {**BUSY["builder"], "heartbeat": 2}})
    result = host.deploy(second, settle=3)
    assert (result["state"], result["before"], result["release"]) == ("put back", first, first)
    assert result["problems"][0]["what"].startswith(why)
    assert host.workers() == {"builder": first, "tester": first}
    assert host.links() == (first, None)
    assert host.sh("cat .config/rolecall/agent.yml") == config
    assert not host.sh("ls .config/rolecall").count("deploying")
    assert host.alive(agent)
    host.sh("touch work/go")
    host.wait_status("ready_for_integrator")
    assert host.sh("cat work/ends") == "\n"


def test_a_first_deploy_that_fails_leaves_nothing(host: Copied) -> None:
    """But the release itself, so that it need not be copied again."""
    second = host.release(builder=DIES)
    before = host.files()
    result = host.deploy(second, settle=3)
    assert (result["state"], result["release"]) == ("put back", None)
    assert host.links() == (None, None)
    assert {row["state"] for row in host.rows().values()} == {"not installed"}
    assert [line for line in host.files().splitlines() if ".config" in line] == []
    assert before.count("MANIFEST") == host.files().count("MANIFEST") == 1


def test_workers_that_have_handed_over_are_handed_back(host: Copied) -> None:
    """Though they are well, and heed no signal: what fails is the next role. Attempts live on."""
    host.configure(BUSY)
    host.write_queue(build())
    first = host.release()
    host.deploy(first)
    agent = host.agent()
    second = host.release(builder=IGNORES, tester=EXITS)
    result = host.deploy(second)
    assert result["state"] == "put back"
    assert [each["what"].partition("\n")[0] for each in result["problems"]] == [
        "tester: not started"
    ]
    assert host.workers() == {"builder": first, "tester": first}
    assert host.alive(agent)


def test_what_a_person_stopped_stays_stopped(host: Copied) -> None:
    """And is told, with what starts it."""
    host.deploy(host.release())
    host.do("agents.stop", "--role", "tester")
    second = host.release("2")
    result = host.deploy(second)
    assert did(result) == [("builder", "restarted")]
    told = "tester: stopped before, and left so: invoke agents.start --role tester"
    assert result["notes"] == [told]
    assert host.workers() == {"builder": second, "tester": ""}
    result = host.deploy(second)
    assert (result["state"], result["notes"]) == ("nothing to do", [told])


def test_a_config_of_newer_code_is_understood_as_far_as_it_goes(host: Copied) -> None:
    """A deploy of an older checkout: what a person stopped is no new role for it."""
    host.deploy(host.release())
    host.do("agents.stop", "--role", "tester")
    newer(host)
    second = host.release("2")
    assert did(host.deploy(second)) == [("builder", "restarted")]
    assert host.workers() == {"builder": second, "tester": ""}


@pytest.mark.parametrize("verb", ["deploy", "install"])
def test_at_every_instant_the_release_knows_its_config(host: Copied, verb: str) -> None:
    """Newer code comes before its config, older code after: a power cut may fall between."""
    host.deploy(host.release())
    host.configure({**QUIET, "builder": {**QUIET["builder"], "heartbeat": 2}})
    assert host.perform(host.release("2"), verb).returncode == 0
    link, config = switched(host)
    assert link <= config
    newer(host)
    assert host.perform(host.release("3"), verb).returncode == 0
    link, config = switched(host)
    assert config <= link
    host.configure(QUIET)


def test_going_back_each_release_knows_its_config_too(host: Copied) -> None:
    """The reverse of how it went."""
    host.deploy(host.release())
    host.configure({**QUIET, "builder": {**QUIET["builder"], "heartbeat": 2}})
    assert host.deploy(host.release(builder=EXITS))["state"] == "put back"
    link, config = switched(host)
    assert config <= link
    host.configure(QUIET)


def test_an_install_whose_files_cannot_be_written_changes_no_release(host: Copied) -> None:
    """The old one with the old config, as before; what was sent for it goes."""
    first = host.release()
    host.deploy(first)
    host.configure({**QUIET, "builder": {**QUIET["builder"], "heartbeat": 2}})
    second = host.release("2")
    done = host.perform(second, "install", sent=True, under=SMALL)
    host.configure(QUIET)
    assert "File too large: " in done.stderr
    assert ".config/rolecall/agent.yml" in done.stderr
    assert host.links() == (first, None)
    assert not (host.place / "releases" / second).exists()


def test_a_role_that_is_new_starts_and_one_that_is_gone_stops(host: Copied) -> None:
    """The one that is gone at the very end: an attempt of it would not come back."""
    first = host.release()
    host.deploy(first)
    gone = host.rows()["tester"]["pid"]
    host.configure({"builder": QUIET["builder"], "refiner": QUIET["builder"]})
    result = host.deploy(first)
    assert did(result) == [("builder", "restarted"), ("refiner", "started"), ("tester", "stopped")]
    assert host.workers() == {"builder": first, "refiner": first}
    assert not host.alive(gone)


def test_a_new_role_that_fails_takes_nothing_with_it(host: Copied) -> None:
    """The role that it was to take the place of has run all the time, and the new one is gone."""
    first = host.release()
    host.deploy(first)
    before = host.rows()["tester"]["pid"]
    host.configure({"builder": QUIET["builder"], "refiner": QUIET["builder"]})
    result = host.deploy(host.release(refiner=EXITS))
    assert result["state"] == "put back"
    host.configure(QUIET)
    assert host.workers() == {"builder": first, "tester": first}
    assert host.rows()["tester"]["pid"] == before
    assert not host.sh("ls work/.agent-daemon-pids").count("refiner")


def test_a_check_changes_nothing(host: Copied) -> None:
    """It says which release, which files, and which workers."""
    first = host.release()
    host.deploy(first)
    host.configure({"builder": QUIET["builder"], "refiner": QUIET["builder"]})
    second = host.release("2")
    files, rows = host.files(), host.rows()
    result = host.deploy(second, check=True)
    assert (result["state"], result["before"], result["release"]) == ("would deploy", first, second)
    said = [each["text"] or each["path"].rpartition("/")[2] for each in result["changes"]]
    assert said == [
        f"switch to release {second} (before: {first})",
        "agent.yml",
        "restart builder",
        "start refiner",
        "stop tester",
    ]
    assert (host.files(), host.rows()) == (files, rows)
    host.configure(QUIET)


def test_nobody_has_to_listen(host: Copied) -> None:
    """The connection is gone in the middle: what has begun ends as it would have, well or not."""
    host.deploy(host.release())
    second = host.release("2")
    for how, runs in ((None, second), (EXITS, second)):
        release = host.release("3", builder=how) if how else second
        with host.begin(release) as began:
            assert began.stdout
            assert began.stderr
            began.stdout.close()
            began.stderr.close()
        assert host.workers() == {"builder": runs, "tester": runs}
        assert host.links()[0] == runs


def test_an_interrupted_deploy_is_put_back(host: Copied) -> None:
    """By whoever types Ctrl-C on the host itself."""
    first = host.release()
    host.deploy(first)
    second = host.release("2")
    with host.begin(second, settle=60) as began:
        wait_for(lambda: set(host.workers().values()) == {second}, "all have handed over")
        began.send_signal(signal.SIGINT)
        _, said = began.communicate()
    assert "interrupted: puts release" in said
    assert host.workers() == {"builder": first, "tester": first}
    assert host.links() == (first, None)


def test_a_worker_that_was_to_hand_over_is_put_back_too(host: Copied) -> None:
    """Interrupted before it had left: it runs still, and leaves a moment later."""
    first = host.release()
    host.deploy(first)
    old = host.rows()["builder"]["pid"]
    os.kill(old, signal.SIGSTOP)
    with host.begin(host.release("2")) as began:
        wait_for(lambda: signal.SIGUSR1 in pending(old), "it was told to hand over")
        began.send_signal(signal.SIGINT)
        wait_for(lambda: host.links() == (first, None), "it goes back")
        os.kill(old, signal.SIGCONT)
        began.communicate()
    assert host.workers() == {"builder": first, "tester": first}
    assert not host.alive(old)


def test_a_worker_that_was_starting_ends_with_who_waits_for_it(tmp_path: Path) -> None:
    """Interrupted before it was ready: it would become so later, beside or for the old one."""
    code = (
        "import sys; from daemon.fleet.connection import Local; here = sys.argv[1]\n"
        "script = 'echo $$ >pid.new; mv pid.new pid; exec sleep 100'\n"
        "Local('web1', here).spawn(['/bin/sh', '-c', script], here, here + '/log', 60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as waits:
        wait_for((tmp_path / "pid").exists, "the worker runs")
        waits.send_signal(signal.SIGINT)
        _, said = waits.communicate()
    assert said.endswith("KeyboardInterrupt\n")
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")


def test_after_a_power_cut_the_next_deploy_goes_on_or_all_the_way_back(host: Copied) -> None:
    """What was there before the deploy that was cut short is not forgotten."""
    host.configure(BUSY)
    host.write_queue(build())
    first = host.release()
    host.deploy(first)
    agent = host.agent()
    second = host.release("2")
    with host.begin(second, settle=60) as began:
        wait_for(lambda: set(host.workers().values()) == {second}, "all have handed over")
        began.kill()
        began.communicate()
    assert host.links() == (second, first)
    (since,) = cut_short(host)
    with place.Lock(str(host.place)):  # as of one that is at work
        assert cut_short(host) == {None}
    told = f"localhost: the deploy of {since} was cut short: invoke deploy goes on with it"
    assert told in host.invoke("agents.status").stdout.splitlines()
    result = host.deploy(host.release("3", tester=EXITS))
    assert (result["state"], result["before"], result["release"]) == ("put back", first, first)
    assert f"{since} was cut short: what was there before" in result["notes"][0]
    assert host.workers() == {"builder": first, "tester": first}
    assert host.links() == (first, None)
    assert host.alive(agent)
    with host.begin(second, settle=60) as began:
        wait_for(lambda: set(host.workers().values()) == {second}, "all have handed over")
        began.kill()
        began.communicate()
    result = host.deploy(second)
    assert (result["state"], result["before"]) == ("deployed", first)
    assert "cut short" not in str(result["notes"])
    assert host.deploy(second)["state"] == "nothing to do"
    assert cut_short(host) == {None}
    assert host.alive(agent)


def test_what_cannot_be_put_back_is_said(host: Copied) -> None:
    """The old release is damaged: both reasons are told; a deploy of a whole one mends it."""
    first = host.release()
    host.deploy(first)
    worker = f"{host.place}/releases/{first}/daemon/worker.py"
    host.sh(f"rm {worker}")
    result = host.deploy(host.release(tester=EXITS))
    assert result["state"] == "broken"
    said = [each["what"].partition("\n")[0] for each in result["problems"]]
    assert said[0] == "tester: not started"
    assert "builder: not started" in said[1:]
    second = host.release("2")
    result = host.deploy(second)
    assert result["state"] == "deployed"
    assert host.workers() == {"builder": second, "tester": second}


def test_doctor_looks_at_the_release(host: Copied) -> None:
    """Whether it is whole, and who asks has the same; it leaves all of it as it is."""

    def found(release: str) -> list[tuple[str, str, str]]:
        asked = json.loads(host.asked(release))
        there = Local("web1", asked["checkout"])
        config, options = from_json(asked["config"]), asked["options"]
        said = onhost.perform(there, config, "doctor", options, print)
        keys = ("state", "what", "hint")
        return [tuple(each[key] for key in keys) for each in said if each["check"] == "release"]

    first, second = host.release(), host.release("2")
    assert found(first) == []
    host.deploy(first)
    before = unlocked(host)
    assert found(first) == [("ok", f"{first}: whole, and the one that is here", "")]
    other = f"{first}: whole, and not the one that is here: {second}"
    assert found(second) == [("warn", other, "invoke deploy")]
    assert unlocked(host) == before
    host.sh(f"echo >>{host.place}/releases/{first}/daemon/worker.py")
    damaged = "damaged: daemon/worker.py has changed"
    assert found(second) == [("fail", damaged, "invoke deploy copies it anew")]


def test_another_supervisor_is_refused(host: Copied) -> None:
    """A worker cannot hand over to one of another supervisor."""
    first = host.release()
    host.deploy(first)
    host.configure(QUIET, supervisor="systemd")
    with pytest.raises(AssertionError, match="the supervisor is to change from pidfile to systemd"):
        host.deploy(first)
    host.configure(QUIET)
    assert host.workers() == {"builder": first, "tester": first}
