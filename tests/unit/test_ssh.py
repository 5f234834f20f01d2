"""The ssh call: its argument list as OpenSSH reads it, and the command line as login shells do."""

from __future__ import annotations

import array
import fcntl
import os
import shutil
import subprocess
import sys
import termios
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from daemon.errors import ConfigError
from daemon.fleet import ssh
from daemon.inventory import Host, Inventory
from tests.workspace import PATIENCE, wait_for

Make = Callable[..., Host]
ZERO = zlib.compress(
    b"import os, shlex; os.write(1, shlex.quote('zero').encode() + os.read(0, 100) + b'\\n')\n"
)
SHELLS = ["sh", "dash", "bash", "zsh", "fish", "tcsh"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A host of an inventory, out of its variables."""

    def of(name: str = "web1", **variables: str | int) -> Host:
        lines = "".join(f"      {key}: {value}\n" for key, value in variables.items())
        text = f"all:\n  hosts:\n    {name}:\n{lines}"
        folder = tmp_path / "inventory"
        folder.mkdir(exist_ok=True)
        (folder / "hosts.yml").write_text(text)
        return Inventory.load(str(folder)).hosts()[0]

    return of


def effective(host: Host, tmp_path: Path, config: str = "") -> dict[str, list[str]]:
    """What OpenSSH makes of the argument list and a user's ssh_config: ``ssh -G``."""
    (tmp_path / "ssh_config").write_text(config)
    program, *arguments = ssh.argv(host, "true", 10)
    at = arguments.index("--")
    line = [program, "-G", "-F", str(tmp_path / "ssh_config"), *arguments[:at], arguments[at + 1]]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for each in done.stdout.splitlines():
        key, _, value = each.partition(" ")
        found.setdefault(key, []).append(value)
    return found


def test_nothing_is_asked_and_no_unknown_host_is_trusted(make: Make, tmp_path: Path) -> None:
    """As OpenSSH itself understands it; silence ends in the time that is given."""
    found = effective(make(), tmp_path)
    assert found["batchmode"] == ["yes"]
    assert found["stricthostkeychecking"] == ["true"]
    assert found["connecttimeout"] == ["10"]
    interval, count = int(found["serveraliveinterval"][0]), int(found["serveralivecountmax"][0])
    assert interval * count <= 10
    assert found["requesttty"] == ["false"]
    assert found["hostname"] == ["web1"]


def test_ssh_config_of_the_user_counts(make: Make, tmp_path: Path) -> None:
    """Its names, users, keys, jump hosts and masters; not what is for sessions of a person's."""
    config = """
        Match originalhost web1
            HostName 192.0.2.7
            User alice
            Port 2222
            IdentityFile ~/.ssh/web
            ProxyJump gate
            ControlMaster auto
            ControlPath ~/.ssh/%C
            UserKnownHostsFile /tmp/known
            RemoteCommand tmux attach
            LocalForward 8080 localhost:80
            LogLevel QUIET
            BatchMode no
    """
    found = effective(make(), tmp_path, config)
    assert (found["hostname"], found["user"], found["port"]) == (["192.0.2.7"], ["alice"], ["2222"])
    assert found["identityfile"] == ["~/.ssh/web"]
    assert found["proxyjump"] == ["gate"]
    assert "/.ssh/" in found["controlpath"][0]
    assert found["controlmaster"] == ["false"]  # of others' calls, which would end with ours
    assert found["userknownhostsfile"] == ["/tmp/known"]  # noqa: S108  # named, never opened
    assert found.get("remotecommand", ["none"]) == ["none"]
    assert found["clearallforwardings"] == ["yes"]
    assert found["loglevel"] == ["INFO"]
    assert found["batchmode"] == ["yes"]


def test_the_inventory_wins_over_ssh_config(make: Make, tmp_path: Path) -> None:
    """Address, port, user, key (then that one alone), and further arguments."""
    key = tmp_path / "key"
    key.touch()
    host = make(
        ansible_host="192.0.2.9",
        ansible_port=2200,
        ansible_user="deploy",
        ansible_ssh_private_key_file=str(key),
        ansible_ssh_common_args="-J gate.example",
    )
    config = "Host *\n User alice\n Port 1\n ProxyJump other\n"
    found = effective(host, tmp_path, config)
    assert found["hostname"] == ["192.0.2.9"]
    assert (found["user"], found["port"]) == (["deploy"], ["2200"])
    assert found["identityfile"] == [str(key)]
    assert found["identitiesonly"] == ["yes"]
    assert found["proxyjump"] == ["gate.example"]
    assert found["batchmode"] == ["yes"]
    assert ssh.typed(host) == (
        f"ssh -J gate.example -p 2200 -l deploy -i {key} -o IdentitiesOnly=yes 192.0.2.9"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "-o StrictHostKeyChecking=no",
        "-oStrictHostKeyChecking=no",
        "-o 'stricthostkeychecking accept-new'",
        "-o ControlMaster=auto -o StrictHostKeyChecking=off",
    ],
)
def test_no_inventory_makes_a_strange_host_key_pass(
    make: Make, tmp_path: Path, arguments: str
) -> None:
    """What many inventories have in them; and who types the call by hand is asked, too."""
    host = make(ansible_ssh_common_args=arguments)
    found = effective(host, tmp_path, "Host *\n StrictHostKeyChecking no\n")
    assert found["stricthostkeychecking"] == ["true"]
    assert found["controlmaster"] == ["false"]
    assert ssh.typed(host).startswith("ssh -o StrictHostKeyChecking=ask -o")


def test_an_address_is_never_an_option(make: Make) -> None:
    """It stands behind "--", and one that begins with a dash is refused with its place."""
    line = ssh.argv(make(ansible_host="192.0.2.9"), "true", 10)
    assert line[-3:] == ["--", "192.0.2.9", "true"]
    for each in ("-oProxyCommand=touch${IFS}made", "-W"):
        with pytest.raises(ConfigError, match=r"hosts\.yml:4"):
            ssh.argv(make(ansible_host=each), "true", 10)


def test_a_fraction_of_a_second_is_a_second_to_ssh(make: Make) -> None:
    """It knows whole ones only, and 0 would mean for ever."""
    assert "ConnectTimeout=1" in ssh.argv(make(), "true", 0.2)


def run(host: Host, shell: str, environ: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Have a login shell run the command line as sshd does."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} on this machine: apt-get install {shell}")
    return subprocess.run(
        [found, "-c", ssh.remote_command(host, len(ZERO))],
        input=ZERO + b" and the frame",
        capture_output=True,
        env=environ,
        cwd=environ["HOME"],
        check=False,
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_starts_python(make: Make, shell: str, tmp_path: Path) -> None:
    """It runs the bytes of stage 0, exactly; nothing of the home folder is imported."""
    (tmp_path / "shlex.py").write_text("print('not this one')\n")
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = run(make(), shell, home)
    assert (done.returncode, done.stdout) == (0, b"zero and the frame\n"), done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_says_that_there_is_no_python(
    make: Make, shell: str, tmp_path: Path
) -> None:
    """With an exit status and a line that cannot be mistaken for another failure."""
    (tmp_path / "a home").mkdir()
    nowhere = {"HOME": str(tmp_path / "a home"), "PATH": str(tmp_path)}
    for host in (make(), make(ansible_python_interpreter="/opt/python/bin/python3")):
        done = run(host, shell, nowhere)
        assert (done.returncode, done.stdout) == (127, f"{ssh.NO_PYTHON}\n".encode()), done.stderr


def test_stage_0_may_come_in_pieces(make: Make) -> None:
    """As a network hands it on; not a byte of what follows it is read with it."""
    command = ["sh", "-c", ssh.remote_command(make(), len(ZERO))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin
        for piece in (ZERO[:10], ZERO[10:30], ZERO[30:] + b" and the frame"):
            wait_for(lambda: not _waiting(running.stdin), "the piece before was read")
            running.stdin.write(piece)
            running.stdin.flush()
        assert running.communicate(timeout=PATIENCE)[0] == b"zero and the frame\n"


def _waiting(pipe: IO[bytes] | None) -> int:
    """How many bytes are in a pipe, unread."""
    assert pipe
    number = array.array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, number)
    return number[0]


def test_the_python_that_the_inventory_names_is_run(make: Make, tmp_path: Path) -> None:
    """It alone; ``~`` is the host's home."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "python").symlink_to(sys.executable)
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = run(make(ansible_python_interpreter="~/python"), "sh", environ)
    assert (done.returncode, done.stdout) == (0, b"zero and the frame\n"), done.stderr


@pytest.mark.parametrize("name", ["python3.11", "python3.14"])
def test_a_python_of_the_home_is_found(make: Make, name: str, tmp_path: Path) -> None:
    """Where uv and pip --user put programs, which is in no PATH of a call over ssh."""
    local = tmp_path / "a home" / ".local" / "bin"
    local.mkdir(parents=True)
    (local / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (local / name).chmod(0o755)
    done = run(make(), "sh", {"HOME": str(tmp_path / "a home"), "PATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, b"zero and the frame\n"), done.stderr


@pytest.mark.parametrize("runs", ["shims", "bin"])
def test_a_shim_with_no_python_behind_it_is_passed_over(
    make: Make, runs: str, tmp_path: Path
) -> None:
    """As pyenv's and asdf's are; one with a Python behind it is run as any other.

    Broken once by running whatever has the name: the shim's error was all that was seen.
    """
    shims, programs = tmp_path / "shims", tmp_path / "bin"
    python = f'echo {{name}} >>{tmp_path}/ran; exec {sys.executable} "$@"'
    shim = python if runs == "shims" else "echo not installed >&2; exit 127"
    for path, script in (
        (shims / f"python3.{sys.version_info.minor}", shim),
        (programs / "python3", python),
    ):
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script.format(name=path.parent.name)}\n")
        path.chmod(0o755)
    done = run(make(), "sh", {"HOME": str(tmp_path), "PATH": f"{shims}:{programs}"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"zero and the frame\n", b"")
    assert (tmp_path / "ran").read_text().split()[-1] == runs


@pytest.mark.parametrize("path", ["'/opt/a$(touch made)'", "'/opt/a;b'", '"/opt/it\'s"'])
def test_a_path_that_a_shell_would_change_is_refused(make: Make, path: str) -> None:
    """With the place where it is written."""
    with pytest.raises(ConfigError, match=r"hosts\.yml:4"):
        ssh.remote_command(make(ansible_python_interpreter=path), 1)
