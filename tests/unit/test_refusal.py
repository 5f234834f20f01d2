"""What ssh said, recorded from OpenSSH 9.2 against real servers, and what a person reads of it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from daemon.fleet import ssh
from daemon.fleet.refusal import LONGEST, Call, unreachable
from tests.workspace import ROOT

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests" / "recordings" / "ssh.json").read_text()
)
TYPED = "ssh -l deploy web1"
#: Of each recording: parts of what is said, then a part of the hint.
SAID = {
    "unknown key": ("the host key of 198.18.77.10 is not known here", "accept it once: ssh"),
    "changed key": (
        "THE HOST KEY OF 198.18.77.10 HAS CHANGED",
        "SHA256:qA7Bs9YyvgwA25N/xdhW3TpJAyN3hZkXj5yqWhKU09c",
        "/home/me/.ssh/known_hosts:1",
        'Only if it is that one: ssh-keygen -f "/home/me/.ssh/known_hosts" -R "198.18.77.10"',
    ),
    "revoked key": ("198.18.77.10 IS REVOKED", "do not connect"),
    "denied": ("nobody@198.18.77.10: permission denied", "publickey", "ansible_user"),
    "nologin shell": ("may not log in: This account is currently not available", "ansible_user"),
    "account expired": ("may not log in: Your account has expired", "ansible_user"),
    "shell is false": ("exit status 1, and no answer", TYPED),
    "no address": ("no address is known for no-such-host.invalid", "ansible_host"),
    "refused": ("198.18.77.10 port 9: connection refused", "ansible_port"),
    "no route": ("2001:db8::1 port 22: No route to host", "switched on"),
    "silent host": ("198.18.77.77 port 22: no answer within 10 s", "firewall"),
    "banner": ("no answer within 10 s", TYPED),
    "key file missing": (
        "the key file /nonexist/key cannot be read: No such file or directory",
        "deploy@198.18.77.10: permission denied",
        "ansible_ssh_private_key_file",
    ),
    "key file open": ("is open to others (mode 0644)", "chmod 600 /home/me/.ssh/openkey"),
    "bad option": ("its own configuration: command-line: line 0: Bad", "~/.ssh/config"),
    "no such config": ("its own configuration: Can't open user config file", "~/.ssh/config"),
    "no common way": ("no matching host key type found. Their offer: ssh-ed25519", TYPED),
    "too many keys": ("more keys than the host lets one try", "ansible_ssh_private_key_file"),
    "nologin file": ("hung up before anybody could log in: down for repairs", "MaxStartups"),
    "too many at once": ("hung up before anybody could log in", "--forks"),
    "closes at once": ("jump host or ProxyCommand did not come through", TYPED),
    "proxy command missing": ("/nonexist: No such file or directory", TYPED),
    "jump: no address": ("no address is known for nojump.invalid", "ansible_host"),
    "jump: silent": ("no answer within 10 s", TYPED),
    "jump: refused": ("198.18.77.11 port 9: connection refused", "ansible_port"),
    "jump: unknown key": ("a host key on the way cannot be verified", "jump host's key"),
    "behind jump: denied": ("nobody@198.18.77.10: permission denied", "ansible_user"),
    "behind jump: refused": ("did not come through: channel 0: open failed: connect failed", TYPED),
    "broken off": ("the connection broke off", TYPED),
}


def said(status: int | None, stderr: str = "", noise: str = "", python: str | None = None) -> str:
    error = unreachable(Call(TYPED, status, stderr, 10.0, noise, python, named=True))
    assert error.exit_code == 4
    (problem,) = error.problems
    assert "\n" not in problem.what + problem.hint
    assert "\r" not in problem.what + problem.hint
    return f"{problem.what}\n{problem.hint}"


def test_every_recording_is_looked_at() -> None:
    """None is there for nothing."""
    assert set(SAID) == set(RECORDED)


@pytest.mark.parametrize("name", SAID)
def test_what_ssh_said_becomes_one_clear_line_and_a_hint(name: str) -> None:
    """The line names what is wrong, the hint what to type; never "ssh failed" alone."""
    was = RECORDED[name]
    text = said(was["status"], was["stderr"], was["stdout"])
    *parts, hint = SAID[name]
    assert [each for each in parts if each not in text.splitlines()[0]] == []
    assert hint in text.splitlines()[1]
    assert "ssh failed" not in text


@pytest.mark.parametrize("name", SAID)
def test_a_banner_before_it_hides_nothing(name: str) -> None:
    """Servers and rc files print what they like before it."""
    was = RECORDED[name]
    banner = "** Property of ACME; Permission to enter is logged **\r\nWarning: be nice\r\n"
    assert said(was["status"], banner + was["stderr"], "hello\n" + was["stdout"]).startswith(
        said(was["status"], was["stderr"], was["stdout"]).splitlines()[0][:40]
    )


def test_what_nobody_foresaw_is_quoted() -> None:
    """The last line that says something, for ssh's own failures and for the far shell's."""
    assert said(255, "Warning: x\r\nthe moon is full\r\n").startswith(
        "ssh failed: the moon is full"
    )
    assert said(255).startswith("ssh failed, and said no reason")
    assert said(2, noise="csh: syntax error\n").startswith(
        "the login shell there ended with exit status 2, and no answer: csh: syntax error"
    )
    assert said(-9).startswith("ssh was ended by signal 9")
    assert said(None).startswith("no answer within 10 s")
    assert said(None, noise="Press any key\n").startswith("no answer within 10 s: Press any key")


def test_a_host_without_python_is_told_from_one_without_the_named_python() -> None:
    """Each with what mends it."""
    noise = f"Welcome!\n{ssh.NO_PYTHON}\n"
    assert said(127, noise=noise).startswith("no Python 3.11 or newer is there\ninstall one")
    named = said(127, noise=noise, python="/opt/python")
    assert named.startswith("there is no /opt/python, which the inventory names\n")
    assert "ansible_python_interpreter" in named


def test_a_host_without_an_address_is_told_how_to_get_one() -> None:
    """Where the inventory names none; else that one is looked at."""
    stderr = RECORDED["no address"]["stderr"]
    error = unreachable(Call(TYPED, 255, stderr, 10.0))
    assert error.problems[0].hint == "ansible_host: ADDRESS, or a Host entry in ~/.ssh/config"
    assert said(255, stderr).endswith("\nis ansible_host right?")


@pytest.mark.parametrize("begin", ["", "x: ", "a account is ", "Load key ", "config: line "])
def test_a_line_without_end_costs_neither_time_nor_a_screen(begin: str) -> None:
    """A host may say anything, for as long as it likes."""
    line = begin + "System is pam account " * 750
    began = time.process_time()
    text = said(255, line, line)
    assert time.process_time() - began < 0.5
    assert len(text) < 2 * LONGEST
