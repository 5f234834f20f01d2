"""What is done on a host: by this code, in that host's own process, for whoever asks from afar."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from daemon.config import Config, from_json
from daemon.errors import RolecallError
from daemon.fleet import arrival, place
from daemon.fleet.connection import Local
from daemon.transient import ROOT

if TYPE_CHECKING:
    from daemon.fleet.speaker import Speaker

PROTOCOL = 1
MISTAKE = "it is a mistake of Rolecall's"
CHANGING = ("install", "uninstall", "start", "stop", "restart", "deploy")

Tell = Callable[[str], None]
Options = dict[str, Any]


class Asked(NamedTuple):
    """What a verb gets. ``tell`` takes a line for a person, ``line`` one of a log."""

    connection: Local
    config: Config
    options: Options
    tell: Tell
    line: Tell


Verb = Callable[[Asked], Any]


def _install(asked: Asked) -> Any:
    from daemon.fleet import copied, install  # noqa: PLC0415  # each verb imports what it needs

    check, sent = asked.options.get("check", False), copied.sent(asked.options)
    return install.install(asked.connection, asked.config, check=check, sent=sent).facts()


def _uninstall(asked: Asked) -> Any:
    from daemon.fleet import install  # noqa: PLC0415

    check = asked.options.get("check", False)
    return install.uninstall(asked.connection, asked.config, check=check).facts()


def _start(asked: Asked) -> Any:
    from daemon.fleet import workers  # noqa: PLC0415

    return [each._asdict() for each in workers.start(_place(asked), asked.tell)]


def _stop(asked: Asked) -> Any:
    from daemon.fleet import workers  # noqa: PLC0415

    places = [_place(asked)]
    if not asked.options.get("role"):
        places += workers.dropped(asked.connection, asked.config)
    return [each._asdict() for at in places for each in workers.stop(at, asked.tell)]


def _restart(asked: Asked) -> Any:
    from daemon.fleet import workers  # noqa: PLC0415

    return [each._asdict() for each in workers.restart(_place(asked), asked.tell)]


def _status(asked: Asked) -> Any:
    from daemon.fleet import workers  # noqa: PLC0415

    return [each.facts() for each in workers.status(_place(asked))]


def _logs(asked: Asked) -> Any:
    from daemon.fleet import workers  # noqa: PLC0415

    options = asked.options
    lines, follow = options.get("lines", 50), options.get("follow", False)
    for line in workers.logs(_place(asked), lines, follow=follow):
        asked.line(line)
    return True  # None is the answer where there is no release


def _doctor(asked: Asked) -> Any:
    from daemon.fleet import copied, doctor  # noqa: PLC0415

    options, config = asked.options, asked.config
    findings = doctor.examine(
        config,
        role=options.get("role"),
        connection=asked.connection,
        sent=copied.sent(options),
    )
    if seconds := options.get("in_unit"):
        from daemon.fleet import trying  # noqa: PLC0415  # only where a trial is asked for

        names = [options["role"]] if options.get("role") else config.run
        roles = [config.roles[name] for name in names]
        findings += trying.examine(config, roles, seconds, asked.tell)
    return [each._asdict() for each in findings]


def _deploy(asked: Asked) -> Any:
    from daemon.fleet import copied, switching  # noqa: PLC0415

    options = asked.options
    return switching.deploy(
        asked.connection,
        asked.config,
        sent=copied.sent(options),
        settle=options.get("settle", switching.SETTLE),
        check=options.get("check", False),
        tell=asked.tell,
    ).facts()


def _place(asked: Asked) -> Any:
    from daemon.fleet import workers  # noqa: PLC0415

    return workers.place(asked.connection, asked.config, asked.options.get("role"))


VERBS: MappingProxyType[str, Verb] = MappingProxyType(
    {
        "install": _install,
        "uninstall": _uninstall,
        "start": _start,
        "stop": _stop,
        "restart": _restart,
        "status": _status,
        "logs": _logs,
        "doctor": _doctor,
        "deploy": _deploy,
    }
)


def perform(  # noqa: PLR0913, PLR0917  # where, what, and who is told
    connection: Local,
    config: Config,
    verb: str,
    options: Options,
    tell: Tell,
    line: Tell | None = None,
) -> Any:
    """Do it here; returns what JSON can say. Raises RolecallError.

    ``tell`` gets lines for a person at once, ``line`` those of a log.
    """
    if verb not in VERBS:
        raise RolecallError(
            f'the release on this host does not know "{verb}"', hint="invoke deploy"
        )
    return VERBS[verb](Asked(connection, config, options, tell, line or tell))


# --- asked from afar ------------------------------------------------------------------------------


def serve(request: Options, facts: Options) -> None:
    """Do what the operator's side asks, and tell it: the part of stage 0 that a release has.

    ``request`` is its second message, ``facts`` what stage 0 has said of this host. Lines and signs
    of life go to standard output meanwhile, then one result or one error.
    """
    from daemon.fleet.speaker import Speaker  # noqa: PLC0415  # not for this machine's own status

    speaker = Speaker()
    verb, options = str(request.get("verb")), {**request.get("options", {})}
    if verb in CHANGING:
        # Who has asked may be gone at any time: what was begun is done to its end.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # As a login manager ends what is left of a login. What we start is not to be deaf to it.
        signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        if verb not in CHANGING:
            speaker.end_with_stdin()
        result = _performed(request, options, facts, speaker)
    except RolecallError as error:
        speaker.end({"error": _error(error)})
    except KeyboardInterrupt:
        speaker.end({"error": _error(RolecallError("interrupted"))})
    except Exception as error:
        told = _told(error)
        speaker.end({"error": _error(told)})
        if told.problems[0].hint == MISTAKE:
            raise  # for stderr, which the operator's side may show
    else:
        speaker.end({"result": result})


def _performed(request: Options, options: Options, facts: Options, speaker: Speaker) -> Any:
    try:
        # Until the next deploy the operator's checkout may be newer than the release here.
        config = from_json(request["config"], newer=True)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RolecallError(
            "the release on this host does not understand the inventory's settings: one of the two "
            "is older",
            hint="invoke deploy",
        ) from None
    folder = place.place_of(facts["home"], config.unit_prefix)
    name = str(options.pop("host", facts["node"]))
    reached = str(options.pop("ssh", f"ssh {name}"))
    connection = Local(name, os.path.join(folder, place.CURRENT), reached)
    if request.get("release"):
        options |= {"release": request["release"], "sent": bool(request.get("upload"))}
    return perform(
        connection, config, str(request.get("verb")), options, speaker.tell, speaker.line
    )


def _told(error: Exception) -> RolecallError:
    """What the system refused; a release that is not whole any more; or a mistake of ours."""
    what = f"{type(error).__name__}: {error}"
    module = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if not os.path.exists(__file__) or (module and module not in sys.stdlib_module_names):
        return arrival.Damaged(what, where=ROOT, hint="invoke install copies it anew")
    if isinstance(error, OSError):
        return place.failure(error)
    return RolecallError(what, hint=MISTAKE)


def _error(error: RolecallError) -> Options:
    problems = [list(each) for each in error.problems]
    code = getattr(error, "code", "")
    return {"problems": problems, "exit_code": error.exit_code, "code": code}
