"""Three machines with real sshd and systemd, from one inventory, as an operator sees them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.fleet.fanout import SILENCE
from tests.fleet import LONG_AGENT, build
from tests.machines import Many, Member, reachable, switched_on
from tests.system.conftest import Machine
from tests.workspace import PATIENCE, wait_for

NAMES = ("one", "two", "three")
IDLE = {"builder": {"script": "true"}, "tester": {"script": "true"}}
BUSY = {"builder": {"script": LONG_AGENT, "stop_budget": 0.5}}
SMALL = 300_000  # bytes: an ssh session, stage 0 and a config, and less than a release
#: Relays an ssh session, and breaks it off after so many bytes of ours.
BREAKING = (
    "import os, select, socket, sys\n"
    "left, s = int(sys.argv[2]), socket.create_connection((sys.argv[1], 22))\n"
    "while left > 0:\n"
    "    for each in select.select([0, s], [], [])[0]:\n"
    "        data = os.read(0, 4096) if each == 0 else s.recv(4096)\n"
    "        if not data: sys.exit()\n"
    "        if each == 0: left -= len(data); s.sendall(data)\n"
    "        else: os.write(1, data)\n"
)


@pytest.fixture(scope="module")
def members(testbed: Callable[[str], Machine]) -> Iterator[dict[str, Member]]:
    """The machines of this module. They share nothing with this one but its /usr and /etc."""
    with switched_on({name: testbed(name) for name in NAMES}, "--ssh") as made:
        yield made


def prepared(folder: Path, members: dict[str, Member]) -> Many:
    """An inventory of the three, with a workspace on each, and nothing installed."""
    made = Many(folder, members)
    for member in members.values():
        member.sh("git init --quiet work")
        member.queue()
    made.configure(IDLE)
    return made


def take_away(many: Many) -> None:
    """All that a test may have left."""
    many.hosts = {name: {} for name in NAMES}
    many.write_ssh_config()
    many.configure(IDLE)
    many.do("uninstall")
    many.clean()


@pytest.fixture(scope="module")
def kept(members: dict[str, Member]) -> Iterator[dict[str, Many]]:
    """What ``running`` leaves for the next test; taken away where that is not one of its own."""
    del members  # they are switched off after this
    made: dict[str, Many] = {}
    yield made
    for each in made.values():
        take_away(each)


@pytest.fixture
def many(kept: dict[str, Many], members: dict[str, Member], tmp_path: Path) -> Iterator[Many]:
    """Nothing is installed on the three; all is taken away afterwards."""
    if "running" in kept:
        take_away(kept.pop("running"))
    made = prepared(tmp_path, members)
    yield made
    take_away(made)


@pytest.fixture
def running(
    kept: dict[str, Many], members: dict[str, Member], tmp_path_factory: pytest.TempPathFactory
) -> Many:
    """All workers run on the three, and do so after the test, which only looks."""
    if "running" not in kept:
        kept["running"] = made = prepared(tmp_path_factory.mktemp("running"), members)
        made.do("install")
        made.do("agents.start")
    return kept["running"]


def failures(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What stderr says of each host, from its name on."""
    found: dict[str, str] = {}
    name = ""
    for line in done.stderr.splitlines():
        who, colon, _ = line.partition(":")
        name = who if colon and " " not in who and who != "hint" else name
        found[name] = f"{found.get(name, '')}{line}\n"
    return found


def test_a_host_that_is_cut_off_is_named_and_the_others_are_true(running: Many) -> None:
    """Within the timeout, with exit status 4; plugged in again, all is true again."""
    states = dict.fromkeys((f"{name}:{role}" for name in NAMES for role in IDLE), "running")
    running.members["two"].machine.cut()
    try:
        began = time.monotonic()
        found = running.rows(exit_status=4, timeout=SILENCE)
        took = time.monotonic() - began
    finally:
        running.members["two"].machine.heal()
    assert took < 2 * SILENCE
    assert re.search("no answer within|No route to host", found["two:"]["text"])
    assert {who: row["state"] for who, row in found.items()} == {
        **{who: state for who, state in states.items() if not who.startswith("two:")},
        "two:": "unreachable",
    }
    reachable(running, "two")
    assert running.states() == states


def test_a_power_cut_stops_no_worker_for_long(running: Many) -> None:
    """Switched on again, the host runs its workers again, with nobody typing anything."""
    before = running.rows()
    three = running.members["three"]
    three.machine.kill()
    found = running.states(exit_status=4, timeout=SILENCE)
    assert found["three:"] == "unreachable"
    assert found["one:builder"] == "running"
    three.machine.up("--ssh", shown=())
    wait_for(
        lambda: set(running.states(exit_status=None, timeout=SILENCE).values()) == {"running"},
        "all running",
    )
    after = running.rows()
    assert after["one:builder"]["pid"] == before["one:builder"]["pid"]
    assert after["three:builder"]["since"] > before["three:builder"]["since"]


def test_logs_and_doctor_tell_of_every_host(running: Many) -> None:
    """Each line under the name of its host."""
    said = running.do("agents.logs")
    for name in NAMES:
        assert any(each.startswith(f"{name}: ") and "started" in each for each in said.splitlines())
    found = json.loads(running.invoke("doctor", "--json").stdout)
    assert {name for name in NAMES if name in json.dumps(found)} == set(NAMES)


def test_one_command_installs_all_and_does_so_once(many: Many) -> None:
    """The second install sends no release, changes nothing and restarts nothing."""
    before = {name: each.received() for name, each in many.members.items()}
    said = many.do("install")
    for name, each in many.members.items():
        assert f"{name}: created ~/.config/systemd/user/agent-builder.service" in said
        assert each.received() - before[name] > SMALL
        assert len(each.releases()) == 1
    many.do("agents.start")
    rows = many.rows()
    assert {who: row["state"] for who, row in rows.items()} == {
        f"{name}:{role}": "running" for name in NAMES for role in IDLE
    }
    files = {name: each.files() for name, each in many.members.items()}
    before = {name: each.received() for name, each in many.members.items()}
    said = many.do("install")
    assert said.splitlines() == [f"{name}: nothing to do" for name in sorted(NAMES, key=said.find)]
    for name, each in many.members.items():
        assert each.received() - before[name] < SMALL
        assert each.files() == files[name]
    after = many.rows()
    assert {who: row["pid"] for who, row in after.items()} == {
        who: row["pid"] for who, row in rows.items()
    }


def test_run_and_limit_say_where_a_role_runs(many: Many) -> None:
    """``run:`` of a host in the inventory, ``--limit`` of a command."""
    many.hosts["three"] = {"run": ["tester"]}
    many.configure(IDLE)
    many.do("install")
    many.do("agents.start", "--role", "builder")
    states = many.states(exit_status=3)
    assert {who: state for who, state in states.items() if state == "running"} == {
        "one:builder": "running",
        "two:builder": "running",
    }
    assert "three:builder" not in states
    many.do("agents.stop", "--limit", "one")
    many.do("agents.start", "--role", "tester", "--limit", "two,three")
    states = many.states(exit_status=3)
    assert {who for who, state in states.items() if state == "running"} == {
        "two:builder",
        "two:tester",
        "three:tester",
    }


def test_uninstall_leaves_nothing_on_any_host(many: Many) -> None:
    """Files, folders, units, processes and lingering are what they were."""
    for each in many.members.values():
        each.root("loginctl disable-linger deploy")
    before = {name: each.everything() for name, each in many.members.items()}
    many.do("install")
    many.do("agents.start")
    assert all(each.everything() != before[name] for name, each in many.members.items())
    many.do("uninstall")
    assert {name: each.everything() for name, each in many.members.items()} == before
    assert many.do("uninstall").count("nothing to do") == len(NAMES)
    for each in many.members.values():
        each.root("loginctl enable-linger deploy")


def test_check_changes_nothing_on_a_host(many: Many) -> None:
    """It says what install would do, on a host that has never seen Rolecall."""
    before = {name: each.everything() for name, each in many.members.items()}
    said = many.do("install", "--check", "--diff")
    for name in NAMES:
        assert f"{name}: would create ~/.config/systemd/user/agent-builder.service" in said
    assert {name: each.everything() for name, each in many.members.items()} == before


def test_each_failure_has_its_clear_line_and_the_others_are_done(
    many: Many, tmp_path: Path
) -> None:
    """One command, with every way that a host can refuse us at once."""
    two, three = (many.members[name] for name in ("two", "three"))
    changed, empty = tmp_path / "changed", tmp_path / "empty"
    other = two.machine.state / "id_ed25519.pub"
    changed.write_text(f"{two.machine.address} {other.read_text()}")
    empty.touch()
    many.hosts = {
        "one": {},
        "changed": {
            "ansible_host": two.machine.address,
            "ansible_ssh_extra_args": f"-o UserKnownHostsFile={changed}",
        },
        "unknown": {
            "ansible_host": two.machine.address,
            "ansible_ssh_extra_args": f"-o UserKnownHostsFile={empty}",
        },
        "stranger": {"ansible_host": "two", "ansible_user": "nobody-here"},
        "shut": {"ansible_host": "two", "ansible_port": 9},
        "nowhere": {"ansible_host": "no-such-host.invalid"},
        "pythonless": {"ansible_host": "three"},
        "misled": {"ansible_host": "two", "ansible_python_interpreter": "~/no/python3"},
    }
    many.configure(IDLE)
    hidden = "/usr/bin/python3 /usr/bin/python3.11"
    three.root(f"mkdir /aside; mv {hidden} /aside")
    try:
        done = many.invoke("install", "--forks=8")
    finally:
        three.root("mv /aside/* /usr/bin; rmdir /aside")
    assert done.returncode == 4, done.stderr
    assert "one: created ~/.config/systemd/user/agent-builder.service" in done.stdout
    said = failures(done)
    assert f"THE HOST KEY OF {two.machine.address} HAS CHANGED" in said["changed"]
    assert f"{changed}:1" in said["changed"]
    assert f"the host key of {two.machine.address} is not known here" in said["unknown"]
    assert f"nobody-here@{two.machine.address}: permission denied" in said["stranger"]
    assert "port 9: connection refused" in said["shut"]
    assert "no address is known for no-such-host.invalid" in said["nowhere"]
    assert "no Python 3.11 or newer is there" in said["pythonless"]
    assert "there is no ~/no/python3, which the inventory names" in said["misled"]
    assert "one" not in said
    assert "Traceback" not in done.stderr
    assert two.releases() == []


def test_a_full_disk_is_that_host_s_alone(many: Many) -> None:
    """It has nothing half then; with room again, the same command mends it."""
    two = many.members["two"]
    two.root("dd if=/dev/zero of=/var/filler bs=64k status=none || rm -f /nothing")
    try:
        done = many.invoke("install")
        assert done.returncode == 1, done.stderr
        said = failures(done)
        assert "No space left on device" in said["two"]
        assert "make room" in said["two"]
        for name in ("one", "three"):
            assert f"{name}: created ~/.config/systemd/user/agent-builder.service" in done.stdout
            assert name not in said
        assert two.sh("find .local .config 2>/dev/null || :") == ""
    finally:
        two.root("rm -f /var/filler")
    said_then = many.do("install")
    assert "two: created ~/.config/systemd/user/agent-builder.service" in said_then
    assert "one: nothing to do" in said_then


def test_an_upload_that_breaks_off_is_mended_by_the_next(many: Many) -> None:
    """The operator says which host was lost, and when; that host has no half release."""
    program = many.folder / "breaking.py"
    program.write_text(BREAKING)
    two = many.members["two"]
    proxy = f"  ProxyCommand {sys.executable} {program} {two.machine.address} {SMALL}"
    many.write_ssh_config("Host two", proxy)
    done = many.invoke("install")
    assert done.returncode == 4, done.stderr
    assert "the connection was lost in the middle of install" in failures(done)["two"]
    wait_for(lambda: two.sh("find .local 2>/dev/null || :") == "", "the half release removed")
    many.write_ssh_config()
    many.do("install")
    many.do("agents.start")
    assert set(many.states().values()) == {"running"}


def agent(member: Member) -> int:
    """The pid of a running LONG_AGENT; waits for it."""
    script = "cat work/agent.pid 2>/dev/null || :"
    return int(wait_for(lambda: member.sh(script), f"the agent on {member.name}"))


def test_attempts_live_through_a_restart(many: Many) -> None:
    """On every host: other workers, the same agents."""
    many.configure(BUSY)
    many.do("install")
    for each in many.members.values():
        each.queue(build())
    many.do("agents.start")
    agents = {name: agent(each) for name, each in many.members.items()}
    before = many.rows()
    many.do("agents.restart")
    after = many.rows()
    for name, each in many.members.items():
        who = f"{name}:builder"
        assert before[who]["pid"] != after[who]["pid"]
        assert [task["task_id"] for task in after[who]["working_on"]] == ["T1"]
        assert before[who]["working_on"][0]["pid"] == after[who]["working_on"][0]["pid"]
        assert each.sh(f"readlink /proc/{agents[name]}/exe").strip().endswith("sleep")


def test_a_host_behind_another_is_reached_by_its_jump_host(many: Many) -> None:
    """By ssh_config's ProxyJump; without the jump host it is unreachable, and that is said."""
    one = many.members["one"]
    many.write_ssh_config("Host three", "  ProxyJump one")
    limit = ("--limit", "three")
    assert set(many.states(*limit, exit_status=3).values()) == {"not installed"}
    came = many.members["three"].root("journalctl -u ssh -n 20 -o cat | grep Accepted | tail -n 1")
    assert f"from {one.machine.address} " in came
    one.machine.cut()
    try:
        found = many.rows(*limit, exit_status=4, timeout=SILENCE)
    finally:
        one.machine.heal()
    assert re.search("no answer within|No route to host", found["three:"]["text"])
    reachable(many, "one")
    wait_for(lambda: not calls(many), "the end of all ssh")


def calls(many: Many) -> list[str]:
    """The pids of what ssh runs for this operator, jump hosts and proxies too."""
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and _names(pid, many.ssh_config)]


def _names(pid: str, path: Path) -> bool:
    try:
        return str(path) in Path("/proc", pid, "cmdline").read_text()
    except OSError:  # it has ended by now
        return False


def test_an_interrupted_command_leaves_nothing_running(many: Many) -> None:
    """Neither here, where every ssh ends with it, nor any longer than that."""
    many.write_ssh_config(
        "Host two three", f"  ProxyCommand sh -c 'sleep 600; :' {many.ssh_config}"
    )
    command = many.start("agents.status", "--timeout=600")
    wait_for(lambda: len(calls(many)) >= 2 * len(("two", "three")), "ssh and its proxies")
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=PATIENCE)
    assert command.returncode == 130, err
    assert "Traceback" not in out + err
    wait_for(lambda: not calls(many), "nothing left")


@pytest.fixture
def sockets() -> Iterator[str]:
    """A folder of a short name: the path of a socket has 107 bytes at the most."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


def test_a_key_of_the_agent_logs_in(many: Many, sockets: str) -> None:
    """And a master of ControlMaster is used, and left alone."""
    many.write_ssh_config(
        "Host *",
        "  ControlMaster auto",
        "  ControlPersist 60",
        f"  ControlPath {sockets}/%C",
        key="  IdentityFile none",
    )
    limit = ("--limit", "one,two")
    assert set(many.states(*limit, exit_status=4).values()) == {"unreachable"}
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    many.environ = dict(
        each.split(";")[0].split("=") for each in agent.splitlines() if each.startswith("SSH_")
    )
    environ = {**os.environ, **many.environ}
    try:
        subprocess.run(["ssh-add", "-q", many.key], env=environ, check=True)
        assert set(many.states(*limit, exit_status=3).values()) == {"not installed"}
        assert not os.listdir(sockets)  # no call of ours has become one
        for name in ("one", "two"):
            subprocess.run(["ssh", "-F", many.ssh_config, "-fN", name], env=environ, check=True)
        subprocess.run(["ssh-add", "-q", "-D"], env=environ, check=True)
        assert set(many.states(*limit, exit_status=3).values()) == {"not installed"}
        assert len(os.listdir(sockets)) == len(("one", "two"))
    finally:
        for name in ("one", "two"):
            subprocess.run(
                ["ssh", "-F", many.ssh_config, "-O", "exit", name], capture_output=True, check=False
            )
        subprocess.run(["ssh-agent", "-k"], env=environ, capture_output=True, check=True)


@pytest.mark.parametrize(
    ("shell", "rc"),
    [
        ("bash", ".bashrc"),
        ("dash", ".profile"),
        ("fish", ".config/fish/config.fish"),
        ("tcsh", ".tcshrc"),
    ],
)
def test_login_shells_and_what_they_print_are_no_matter(many: Many, shell: str, rc: str) -> None:
    """Greetings without an end of line are told from what the host says."""
    path = shutil.which(shell)
    if path is None or not path.startswith("/usr"):
        pytest.skip(f"no {shell} on this machine: apt-get install {shell}")
    two, limit = many.members["two"], ("--limit", "two")
    two.sh(f"mkdir aside; mv {rc} aside 2>/dev/null || :")
    two.write(rc, "printf 'hello, type your name: '\n")
    two.root(f"usermod --shell {path} deploy")
    try:
        assert "two: created ~/.config/systemd/user/agent-builder.service" in many.do(
            "install", *limit
        )
        assert set(many.states(*limit, exit_status=3).values()) == {"stopped"}
    finally:
        two.root("usermod --shell /bin/bash deploy")
        two.sh(f"rm -rf {rc} .config/fish .local/share/fish")
        two.sh(f"mv aside/* aside/.[!.]* $(dirname {rc}) 2>/dev/null; rm -r aside")


def test_a_login_without_a_session_is_no_matter(many: Many) -> None:
    """Without PAM, sshd sets no XDG_RUNTIME_DIR; the user's manager is found all the same."""
    three = many.members["three"]
    reload = "kill -HUP $(cat /run/sshd.pid)"
    three.root(f"sed -i 's/UsePAM yes/UsePAM no/' /etc/ssh/sshd_config; {reload}")
    try:
        wait_for(
            lambda: many.invoke("install", "--limit", "three").returncode == 0,
            "install without PAM",
        )
        many.do("agents.start", "--limit", "three")
        assert set(many.states("--limit", "three").values()) == {"running"}
    finally:
        three.root(f"sed -i 's/UsePAM no/UsePAM yes/' /etc/ssh/sshd_config; {reload}")
    reachable(many, "three")
