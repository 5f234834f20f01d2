"""A verb done on a host that is reached by ssh: one call, one conversation.

    we: stage 0, and a greeting         the host: its facts
    we: the verb, the host's config, and the release where the host lacks it
                                        the host: signs of life, lines, then a result or an error

The far end is bootstrap.py, then onhost.py. All that a host says is checked before anything relies
on it: a host may be broken, or somebody else's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.config import to_json
from daemon.errors import EXIT_CONFIG, EXIT_ERROR, ConfigError, Problem, RolecallError
from daemon.fleet import bootstrap, runtime, ssh
from daemon.fleet.connection import UNREACHABLE, Lost, NoAnswer, Unreachable
from daemon.fleet.refusal import Call, unreachable
from daemon.fleet.wire import Ended, HungUp, Overdue, Wire

if TYPE_CHECKING:
    from daemon.fleet.runtime import Runtime
    from daemon.inventory import Host, Inventory

#: Verbs that are done by the operator's own release; all others by the one that the host has.
BRINGS = ("install", "deploy", "doctor")
KEEPS = ("install", "deploy")  # verbs that leave the release there that they bring
#: Verbs that must work where the host's own release is damaged: ours does them then, from aside.
RESCUED = ("uninstall", "stop", "status", "logs")
#: A host that has answered is heard again every 2 s (speaker.ALIVE, bootstrap's pulse); seconds.
STEADY = 6.0
#: What only looks is over in seconds; after so many times the allowed silence it hangs.
LOOK = 12
DAMAGED = "damaged"
EXIT_STATUSES = range(1, 256)
KINDS = {EXIT_CONFIG: ConfigError, UNREACHABLE: Unreachable}  # of error, by exit status

Tell = Callable[[str], None]


class Facts(NamedTuple):
    """What a host says of itself, checked.

    ``kind``: of machine, as ``bootstrap.kind()`` says it. ``releases``: the ids of those it has.
    ``runs``: whether one of them is its current one.
    """

    home: str
    kind: str
    releases: frozenset[str]
    runs: bool = False


class Damaged(RolecallError):
    """The host's copy of a release is not what its manifest says."""


class Asked(NamedTuple):
    """What is to be done on which host. ``release``: by which; None: by the host's current one."""

    inventory: Inventory
    host: Host
    verb: str
    options: dict[str, Any]
    release: Runtime | None
    timeout: float

    @property
    def looks(self) -> bool:
        """Whether nothing is to be changed, followed or tried, so that an end is near."""
        options = self.options
        plain = self.verb == "status" or (self.verb == "doctor" and not options.get("in_unit"))
        return plain or bool(options.get("check"))


def call(  # noqa: PLR0913  # what is done, where, and who is told
    inventory: Inventory,
    host: Host,
    verb: str,
    options: dict[str, Any],
    *,
    timeout: float,
    tell: Tell,
    line: Tell | None = None,
) -> Any:
    """Do a verb on a host; its result, or None where Rolecall is not installed there.

    ``timeout``: seconds of silence after which the host counts as unreachable. ``tell`` gets lines
    for the person at once, ``line`` those of a log; neither is escaped.
    Raises Unreachable, and RolecallError with what went wrong on the host.
    """
    config = inventory.config(host)
    release = runtime.build(*runtime.extras(config)) if verb in BRINGS else None
    asked = Asked(inventory, host, verb, options, release, timeout)
    try:
        return _converse(asked, tell, line or tell)
    except Damaged:
        if verb in RESCUED:
            # To stop its workers is to look at what they hold.
            needed = ("postgres",) * config.on_postgres
            asked = asked._replace(release=runtime.build(*needed))
        elif release is None:
            raise
        return _converse(asked, tell, line or tell, again=True)


def _converse(asked: Asked, tell: Tell, line: Tell, *, again: bool = False) -> Any:
    host, prefix = asked.host, asked.inventory.config(asked.host).unit_prefix
    zero = runtime.stage_zero()
    argv = ssh.argv(host, ssh.remote_command(host, len(zero)), asked.timeout)
    doing = ""
    with Wire(argv, asked.timeout) as wire:
        try:
            wire.send(zero, frame({"protocol": bootstrap.PROTOCOL, "prefix": prefix}))
            facts = facts_of(host, _greeted(wire, tell, line))
            doing = asked.verb
            wire.send(*_request(asked, facts, again=again))
            wire.silence = max(asked.timeout, STEADY)
            if asked.looks:
                wire.end_after(LOOK * asked.timeout)
            return _until(wire, "result", tell, line)
        except HungUp as hung_up:
            raise _lost(asked, hung_up.ended, doing) from None
        except Overdue as overdue:
            what = f"it is alive, but {doing} has not come to its end in {overdue.seconds:g} s"
            raise NoAnswer(what, hint=ssh.typed(host)) from None


def frame(document: dict[str, Any]) -> bytes:
    """A document as the far end reads it: its length in eight hexadecimal digits, then JSON."""
    text = json.dumps(document, ensure_ascii=True).encode()
    return b"%08x%b" % (len(text), text)


def _request(asked: Asked, facts: Facts, *, again: bool) -> tuple[bytes, ...]:
    release = asked.release
    if asked.verb == "uninstall" and not facts.runs:
        # An install that failed may have left more than a release: ours knows what.
        release = runtime.build()
    archive = b""
    if release is not None:
        release.check_fits(asked.host.name, facts.kind)
        if again or release.id not in facts.releases:
            archive = release.archive
    document = {
        "release": release.id if release else None,
        "upload": len(archive),
        "keep": asked.verb in KEEPS and not asked.options.get("check"),
        "verb": asked.verb,
        "options": asked.options,
        "config": to_json(asked.inventory.config(asked.host, home=facts.home)),
    }
    return frame(document), archive


def _greeted(wire: Wire, tell: Tell, line: Tell) -> Any:
    try:
        return _until(wire, "facts", tell, line)
    except RolecallError as error:  # such as: its Python is too old
        raise _of(NoAnswer, error.problems, UNREACHABLE) from None


def _until(wire: Wire, wanted: str, tell: Tell, line: Tell) -> Any:
    """What the first message of that kind says; those before it are passed on."""
    while True:
        message = wire.receive()
        if "error" in message:
            raise _error(message["error"])
        if wanted in message:
            return message[wanted]
        for kind, pass_on in (("tell", tell), ("line", line)):
            if isinstance(text := message.get(kind), str):
                pass_on(text)


def facts_of(host: Host, said: Any) -> Facts:
    """A host's facts. Raises RolecallError where they cannot be."""
    home, kind, releases = (_get(said, name) for name in ("home", "kind", "releases"))
    if (
        isinstance(home, str)
        and home.startswith("/")
        and home.isprintable()
        and isinstance(kind, str)
        and isinstance(releases, list)
        and all(isinstance(each, str) for each in releases)
    ):
        runs = _get(said, "current") in releases
        return Facts(home, kind, frozenset(releases), runs)
    raise RolecallError("what it says of itself makes no sense", hint=ssh.typed(host))


def _get(document: Any, name: str) -> Any:
    return document.get(name) if isinstance(document, dict) else None


def _error(said: Any) -> RolecallError:
    """An error of the host's as one of ours."""
    told = _get(said, "problems")
    problems = [
        Problem(*each)
        for each in (told if isinstance(told, list) else ())
        if isinstance(each, list) and len(each) == len(Problem._fields)
        if all(isinstance(part, str) for part in each)
    ] or [Problem("", "it failed, and does not say why")]
    said_status = _get(said, "exit_code")
    status = said_status if said_status in EXIT_STATUSES else EXIT_ERROR
    kind = Damaged if _get(said, "code") == DAMAGED else KINDS.get(status, RolecallError)
    return _of(kind, problems, status)


def _of(kind: type[RolecallError], problems: Sequence[Problem], exit_code: int) -> RolecallError:
    error = kind(problems[0].what)
    error.problems, error.exit_code = tuple(problems), exit_code
    return error


def _lost(asked: Asked, ended: Ended, doing: str) -> NoAnswer:
    host = asked.host
    call = Call(ssh.typed(host), ended.status, ended.stderr, asked.timeout, ended.noise)
    error = unreachable(call._replace(python=host.python, named=host.address != host.name))
    if not doing:
        return error
    what, hint = error.problems[0].what, error.problems[0].hint
    return Lost(f"the connection was lost in the middle of {doing}: {what}", hint=hint)
