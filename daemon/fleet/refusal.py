"""What it means that an ssh call to a host came to nothing: one clear line, and what to do."""

from __future__ import annotations

import re
from typing import NamedTuple

from daemon.fleet import ssh
from daemon.fleet.connection import NoAnswer

LONGEST = 400  # characters of a line that count: a reason is shorter, and a host may say anything
SSH_FAILED = 255  # what ssh ends with when it is ssh itself that failed (ssh(1), EXIT STATUS)


class Call(NamedTuple):
    """An ssh call that ended without an answer.

    ``typed``: the call as a person would type it. ``status``: ssh's exit status, negative where a
    signal ended it, None where we ended it after ``timeout`` seconds of silence. ``stderr``: what
    it said there. ``noise``: what the host's login shell printed in the place of our answer.
    ``python``: the interpreter that the inventory names, if it names one; ``named``: whether it
    names an address.
    """

    typed: str
    status: int | None
    stderr: str
    timeout: float
    noise: str = ""
    python: str | None = None
    named: bool = False


class Meaning(NamedTuple):
    """What a line of ssh's means. Texts are filled with the pattern's groups and the call's words.

    Every line of tests/recordings/ssh.json was said by OpenSSH 9.2; older ones say the same.
    """

    pattern: str
    what: str
    hint: str = "{typed}"


MEANINGS = (
    Meaning(
        r"(?P<kind>\S+) host key for (?P<host>\S+) was revoked",
        "the {kind} host key of {host} IS REVOKED in known_hosts: who answers may not be that host",
        "do not connect; ask who runs {host}",
    ),
    Meaning(
        r"No (?P<kind>\S+) host key is known for (?P<host>\S+) and you have requested strict",
        "the host key of {host} is not known here",
        "compare its fingerprint with what the host's owner says, and accept it once: {typed}",
    ),
    Meaning(
        r"^Host key verification failed",  # a jump host's own ssh says no more
        "a host key on the way cannot be verified",
        "each jump host's key must be known, too: {typed}",
    ),
    Meaning(
        r"Too many authentication failures",
        "refused: the agent holds more keys than the host lets one try",
        "name the right key, which then is tried alone: ansible_ssh_private_key_file",
    ),
    Meaning(
        r"^(?P<who>\S+): Permission denied \((?P<ways>[^)]*)\)",
        "{who}: permission denied (it takes: {ways})",
        "is that the right user (ansible_user), and is its key in the ssh-agent or named by "
        "ansible_ssh_private_key_file? {typed}",
    ),
    Meaning(
        r"Could not resolve hostname (?P<host>\S+): (?P<why>.*)",
        "no address is known for {host}: {why}",
        "{address}",
    ),
    Meaning(
        r"connect to host (?P<host>\S+) port (?P<port>\d+): Connection timed out",
        "{host} port {port}: no answer within {timeout} s",
        "is it switched on, and does a firewall let ssh through? {typed}",
    ),
    Meaning(
        r"connect to host (?P<host>\S+) port (?P<port>\d+): Connection refused",
        "{host} port {port}: connection refused",
        "does sshd run there, and on this port (ansible_port)?",
    ),
    Meaning(
        r"connect to host (?P<host>\S+) port (?P<port>\d+): (?P<why>.*)",
        "{host} port {port}: {why}",
        "is it switched on, and on a network that can be reached from here? {typed}",
    ),
    Meaning(
        r"^(Connection timed out during banner exchange|Connection to \S+ port \d+ timed out)",
        "no answer within {timeout} s",
    ),
    Meaning(r"^Timeout, server (?P<host>\S+) not responding", "{host} stopped answering"),
    Meaning(
        r"Unable to negotiate with \S+ port \d+: (?P<why>.*)",
        "ssh and the host have no way in common: {why}",
    ),
    Meaning(
        r"^(?P<why>((command-line|\S*config\S*):? line \d+: |Bad port |Can't open user config file"
        r"|unknown option|Bad owner or permissions).*)",
        "ssh refuses its own configuration: {why}",
        "ansible_port, ansible_ssh_common_args, or ~/.ssh/config",
    ),
    Meaning(
        r"(?P<why>System is (booting up|going down).*|.*pam_nologin.*)",
        "lets nobody in at the moment: {why}",
        "wait, and try again",
    ),
    Meaning(
        r"(?P<why>.*[Aa]ccount (is|has) (currently )?(not available|expired|locked).*)",
        "the account may not log in: {why}",
        "ansible_user: an account with a login shell",
    ),
    Meaning(
        r"^Connection (closed|reset) by UNKNOWN port|^stdio forwarding failed",
        "the jump host or ProxyCommand did not come through{first}",
    ),
    Meaning(
        r"^(kex_exchange_identification|Connection (closed|reset) by)",
        "the host hung up before anybody could log in{first}",
        "too many at once (sshd's MaxStartups, then a smaller --forks), or no sshd on that port: "
        "{typed}",
    ),
    Meaning(
        r"^(client_loop: |Connection to \S+ closed|Broken pipe|packet_write_wait|ssh_packet_)",
        "the connection broke off",
    ),
)
CHANGED = "REMOTE HOST IDENTIFICATION HAS CHANGED"
KEY_FILES = (
    (
        r"Identity file (?P<path>.*) not accessible: (?P<why>[^.]*)",
        "the key file {path} cannot be read: {why}",
        "ansible_ssh_private_key_file: where is it?",
    ),
    (
        r"Permissions (?P<mode>\d+) for '(?P<path>.*)' are too open",
        "the key file {path} is open to others (mode {mode}), so that ssh ignores it",
        "chmod 600 {path}",
    ),
    (r"Load key \"(?P<path>.*)\": (?P<why>.*)", "the key file {path}: {why}", "{typed}"),
)
PROSE = re.compile(r"^(@+|Warning: .*|\*\*.*|debug\d: .*|)$")  # lines that say no reason


def unreachable(call: Call) -> NoAnswer:
    """Why there was no answer, from what ssh said and how it ended."""
    call = call._replace(stderr=_cut(call.stderr), noise=_cut(call.noise))
    what, hint = _meaning(call, call.stderr)
    return NoAnswer(what, hint=hint)


def _cut(text: str) -> str:
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line[:LONGEST] + "…" * (len(line) > LONGEST) for line in lines)


def _meaning(call: Call, stderr: str) -> tuple[str, str]:
    words = {
        "typed": call.typed,
        "timeout": f"{call.timeout:g}",
        "first": _first(stderr),
        "address": "is ansible_host right?"
        if call.named
        else "ansible_host: ADDRESS, or a Host entry in ~/.ssh/config",
    }
    if CHANGED in stderr:
        return _changed(call, stderr)
    if ssh.NO_PYTHON in call.noise:
        return _no_python(call)
    if found := _find(MEANINGS, stderr, words):
        denied = _find(KEY_FILES, stderr, words) if "Permission denied (" in stderr else None
        return (f"{denied[0]}; {found[0]}", denied[1]) if denied else found
    if found := _find(MEANINGS, call.noise, words):  # nologin(8) says it on stdout
        return found
    said = _last(stderr) or _last(call.noise)
    if call.status is None:
        return f"no answer within {call.timeout:g} s{f': {said}' if said else ''}", call.typed
    if call.status < 0:
        return f"ssh was ended by signal {-call.status}", call.typed
    if call.status == SSH_FAILED:
        return f"ssh failed: {said}" if said else "ssh failed, and said no reason", call.typed
    ended = f"exit status {call.status}, and no answer"
    return f"the login shell there ended with {ended}{f': {said}' if said else ''}", call.typed


def _find(
    meanings: tuple[Meaning | tuple[str, str, str], ...], text: str, words: dict[str, str]
) -> tuple[str, str] | None:
    for pattern, what, hint in meanings:
        if match := re.search(pattern, text, re.MULTILINE):
            filled = {**words, **match.groupdict()}
            return what.format_map(filled), hint.format_map(filled)
    return None


def _changed(call: Call, stderr: str) -> tuple[str, str]:
    def one(pattern: str, default: str) -> str:
        match = re.search(pattern, stderr, re.MULTILINE)
        return match[1] if match else default

    host = one(r"^Host key for (\S+) has changed", "the host")
    place = one(r"^Offending \S+ key in (.+:\d+)$", "known_hosts")
    offered = one(r"^(SHA256:\S+?)\.?$", "another")
    forget = one(r"^\s*(ssh-keygen -f .+ -R .+)$", f"ssh-keygen -R {host}")
    what = f"THE HOST KEY OF {host} HAS CHANGED: {offered} is offered, {place} says another"
    hint = "somebody may be in between: ask the host's owner for its fingerprint. Only if it is "
    return what, f"{hint}that one: {forget}; {call.typed}"


def _no_python(call: Call) -> tuple[str, str]:
    if call.python:
        return (
            f"there is no {call.python}, which the inventory names",
            "ansible_python_interpreter: a Python 3.11 or newer on that host",
        )
    return (
        "no Python 3.11 or newer is there",
        "install one (Debian: apt-get install python3), or name it: ansible_python_interpreter",
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if not PROSE.match(line.strip())]


def _first(stderr: str) -> str:
    lines = [line for line in _lines(stderr) if not re.match("kex_|Connection |stdio", line)]
    return f": {lines[0]}" if lines else ""


def _last(text: str) -> str:
    lines = _lines(text)
    return lines[-1] if lines else ""
