"""A verb asked of many hosts at once: answers as they come, and what is said meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from daemon.errors import RolecallError
from daemon.fleet.connection import Local
from daemon.fleet.here import UsageError
from daemon.fleet.output import escape

if TYPE_CHECKING:
    from daemon.config import Config
    from daemon.fleet.progress import Progress
    from daemon.inventory import Host, Inventory

FORKS = 5  # hosts at once where --forks does not say otherwise, as Ansible has it
SILENCE = 10.0  # seconds without a sign of life after which a host counts as unreachable
LONGEST_SILENCE = (
    3600  # seconds: longer than any host takes, and short enough for every system call
)
DELAY = 0.5  # seconds that a person waits gladly, and without a progress display

T = TypeVar("T")
Tell = Callable[[str], None]
Say = Callable[[str, str], None]  # a kind ("tell" or "line"), and a text
Hear = Callable[["Host", str, str], None]  # the same, with whose it is


class Answer(NamedTuple, Generic[T]):
    """What came of one host: a value, or an error."""

    host: Host
    value: T | None
    error: RolecallError | None


class Said(NamedTuple):
    """What is said while a host works: ``kind`` is "tell" (to a person) or "line" (of a log)."""

    host: Host
    kind: str
    text: str


class How(NamedTuple):
    """How many hosts are asked at once, and for how long one may be silent (seconds)."""

    forks: int = FORKS
    timeout: float = SILENCE

    @classmethod
    def of(cls, forks: int, timeout: float) -> How:
        """As it was typed. Raises UsageError for what cannot be meant."""
        if forks < 1:
            raise UsageError(f"no number of hosts: {forks}", where="--forks", hint="such as 5")
        if not 0 < timeout <= LONGEST_SILENCE:  # NaN neither
            what = f"no time to wait: {timeout:g}"
            hint = f"seconds, such as 10, and {LONGEST_SILENCE} at most"
            raise UsageError(what, where="--timeout", hint=hint)
        return cls(forks, timeout)


HOW = How()


def each(
    hosts: Sequence[Host],
    do: Callable[[Host, Tell], T],
    *,
    forks: int = FORKS,
    progress: Progress | None = None,
) -> Iterator[Answer[T]]:
    """Do something for every host, on so many at once; the answers in the order they come in.

    What ``do`` tells goes to stderr, under the name of its host. An error of one host is its
    answer. All that is told, and all answers, come in the thread that iterates.
    """

    def doing(host: Host, say: Say) -> T:
        return do(host, partial(say, "tell"))

    return _run(hosts, doing, _told, forks, progress)


def ask(  # noqa: PLR0913  # who is asked, what, and how
    inventory: Inventory,
    hosts: Sequence[Host],
    verb: str,
    options: dict[str, Any],
    how: How = HOW,
    *,
    hear: Hear | None = None,
    configs: Mapping[str, Config] | None = None,
) -> Iterator[Answer[Any]]:
    """Have a verb done on every host: in this process where it is this machine, else over ssh.

    ``hear`` gets what is said meanwhile; without it that goes to stderr. ``configs`` are the
    hosts', where they are known; else it raises ConfigError with the problems of all of them
    before any host is asked.
    """
    found = inventory.configs(hosts) if configs is None else configs

    def do(host: Host, say: Say) -> Any:
        tell, line = partial(say, "tell"), partial(say, "line")
        if host.connection == "local":
            from daemon.fleet import onhost  # noqa: PLC0415  # it imports what the verb needs

            return onhost.perform(
                Local(host.name), found[host.name], verb, dict(options), tell, line
            )
        from daemon.fleet import remote, ssh  # noqa: PLC0415  # only where a host is reached so

        # What it may not know of itself: the inventory's name, and how it is reached.
        named = {"host": host.name, "ssh": ssh.typed(host), **options}
        return remote.call(inventory, host, verb, named, timeout=how.timeout, tell=tell, line=line)

    if is_this_machine(hosts):
        return _run(hosts, do, hear or _told, how.forks, None)
    from daemon.fleet.progress import Progress  # noqa: PLC0415  # as threads below

    progress = None if verb == "logs" else Progress(sys.stderr, [host.name for host in hosts])
    return _run(hosts, do, hear or _told, how.forks, progress)


def is_this_machine(hosts: Sequence[Host]) -> bool:
    """Whether there is nothing to wait for beside what this process does itself."""
    return len(hosts) == 1 and hosts[0].connection == "local"


def read(answers: Iterable[Answer[Any]], parse: Callable[[Host, Any], T]) -> Iterator[Answer[T]]:
    """The answers as values; one that makes no sense is an error of its host."""
    for host, facts, error in answers:
        if error:
            yield Answer(host, None, error)
            continue
        try:
            answer = Answer(host, parse(host, facts), None)
        except RolecallError as nonsense:
            answer = Answer(host, None, nonsense)
        yield answer


def _told(host: Host, _kind: str, text: str) -> None:
    print(escape(f"{host.name}: {text}"), file=sys.stderr, flush=True)  # noqa: T201  # to a person


def _run(
    hosts: Sequence[Host],
    do: Callable[[Host, Say], T],
    hear: Hear,
    forks: int,
    progress: Progress | None,
) -> Iterator[Answer[T]]:
    if is_this_machine(hosts):
        yield _answer(do, hosts[0], partial(hear, hosts[0]))
        return
    from daemon.fleet.crew import Crew  # noqa: PLC0415  # its threads cost a status its speed
    from daemon.fleet.progress import Progress  # noqa: PLC0415  # as above

    progress = progress or Progress(None, [])
    crew = Crew(hosts, partial(_answer, do), forks)
    left = len(hosts)
    try:
        while left:
            came = crew.wait(None if progress.late else DELAY)
            if came is None:
                progress.draw()
                continue
            progress.clear()
            if isinstance(came, Said):
                hear(*came)
            else:
                left -= 1
                progress.done(came.host.name)
                yield came
            if progress.late:
                progress.draw()
    finally:
        progress.clear()
        if left:
            _cut()


def _cut() -> None:
    """End the calls that are still going on: nobody waits for their answers any more."""
    wire = sys.modules.get("daemon.fleet.wire")
    if wire is not None:
        wire.cut_all()


def _answer(do: Callable[[Host, Say], T], host: Host, say: Say) -> Answer[T]:
    try:
        return Answer(host, do(host, say), None)
    except RolecallError as error:
        return Answer(host, None, error)
    except BrokenPipeError:  # whoever reads what we print has seen enough
        raise
    except OSError as error:
        what, where = error.strerror or str(error), error.filename or ""
        return Answer(host, None, RolecallError(what, where=str(where)))
