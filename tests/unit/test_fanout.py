"""Many hosts at once: who is asked when, what comes in which thread, and what an error stops."""

from __future__ import annotations

import threading

import pytest

from daemon.errors import RolecallError
from daemon.fleet import fanout
from daemon.fleet.crew import MOST
from daemon.fleet.fanout import Answer, How, Tell
from daemon.fleet.here import UsageError
from daemon.inventory import Host
from tests.workspace import PATIENCE, wait_for

HOSTS = [Host(f"web{number}", {}, {}) for number in range(1, 8)]
HERE = Host("here", {"ansible_connection": "local"}, {})


def test_answers_come_as_hosts_end() -> None:
    """The slow one comes last, though it was asked first."""
    others = threading.Semaphore(0)

    def do(host: Host, _tell: Tell) -> str:
        if host is HOSTS[0]:
            for _ in HOSTS[1:3]:
                assert others.acquire(timeout=PATIENCE)
        return host.name.upper()

    found = []
    for answer in fanout.each(HOSTS[:3], do, forks=3):
        found.append(answer)
        others.release()
    assert found[-1] == Answer(HOSTS[0], "WEB1", None)
    assert {answer.host.name for answer in found} == {"web1", "web2", "web3"}


@pytest.mark.parametrize(
    ("forks", "timeout", "where"),
    [
        (0, 10.0, "--forks"),
        (-1, 10.0, "--forks"),
        *((5, each, "--timeout") for each in (0.0, -1.0, float("nan"), float("inf"), 1e9)),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(forks: int, timeout: float, where: str) -> None:
    """Before any host is asked: exit status 2."""
    with pytest.raises(UsageError, match=r"no (number|time)") as error:
        How.of(forks, timeout)
    assert error.value.problems[0].where == where
    assert How.of(1, 0.5) == How(1, 0.5)


def test_who_says_much_waits_for_who_reads() -> None:
    """Else the log of a host would fill the memory of a slow terminal's machine."""
    said = []

    def do(host: Host, tell: Tell) -> None:
        if host is HOSTS[0]:
            return
        for number in range(3 * MOST):
            tell("x")
            said.append(number)

    answers = fanout.each(HOSTS[:2], do, forks=2)
    assert next(answers).host is HOSTS[0]
    wait_for(lambda: len(said) >= MOST, "it says as much as anybody may")
    with pytest.raises(AssertionError):
        wait_for(lambda: len(said) > 2 * MOST, "it goes on", seconds=0.3)
    assert [answer.host for answer in answers] == [HOSTS[1]]
    assert len(said) == 3 * MOST


def test_no_more_than_forks_work_at_once() -> None:
    """Two threads for seven hosts; the next one is begun when one of them is done."""
    before, go_on = threading.active_count(), threading.Event()

    def do(host: Host, _tell: Tell) -> None:
        if host is not HOSTS[0]:
            assert go_on.wait(PATIENCE)

    answers = fanout.each(HOSTS, do, forks=2)
    assert next(answers).host is HOSTS[0]
    assert threading.active_count() - before == 2
    go_on.set()
    assert len(list(answers)) == 6


def test_a_reader_that_has_seen_enough_ends_it_all() -> None:
    """It is no error of the host whose lines are printed, but an end of the command."""

    def do(_host: Host, _tell: Tell) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        next(fanout.each([HERE], do))


def test_an_error_is_the_answer_of_its_host_alone() -> None:
    """Ours, and the system's in our voice; the others are asked all the same."""

    def do(host: Host, _tell: Tell) -> int:
        if host is HOSTS[1]:
            raise RolecallError("it is broken", hint="mend it")
        if host is HOSTS[2]:
            raise PermissionError(13, "Permission denied", "/etc/none")
        return 1

    found = {answer.host.name: answer for answer in fanout.each(HOSTS[:4], do)}
    assert [found[name].value for name in ("web1", "web4")] == [1, 1]
    assert str(found["web2"].error) == "error: it is broken\nhint:  mend it"
    assert str(found["web3"].error) == "error: /etc/none: Permission denied"


def test_a_mistake_of_ours_is_not_hidden_in_a_thread() -> None:
    """It is raised where the answers are waited for."""

    def do(_host: Host, _tell: Tell) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(fanout.each(HOSTS, do))


def test_what_is_told_comes_in_the_thread_that_iterates(capsys: pytest.CaptureFixture[str]) -> None:
    """Under its host's name, escaped, before the host's answer."""
    threads = set()

    def do(host: Host, tell: Tell) -> None:
        threads.add(threading.get_ident())
        tell(f"working \x1b[2J on {host.name}")

    list(fanout.each(HOSTS[:2], do))
    told = capsys.readouterr().err.splitlines()
    assert sorted(told) == [f"web{n}: working \\x1b[2J on web{n}" for n in (1, 2)]
    assert threading.get_ident() not in threads


def test_this_machine_alone_needs_no_thread() -> None:
    """So that a status of it is as quick as it can be, and an interruption reaches the work."""

    def do(_host: Host, _tell: Tell) -> int:
        return threading.get_ident()

    assert next(fanout.each([HERE], do)).value == threading.get_ident()


def test_who_stops_listening_is_not_held_up() -> None:
    """An interrupted command leaves its threads to end by themselves."""
    go_on = threading.Event()

    def do(host: Host, _tell: Tell) -> None:
        if host is not HOSTS[0]:
            assert go_on.wait(PATIENCE)

    answers = fanout.each(HOSTS, do, forks=2)
    assert next(answers).host is HOSTS[0]
    answers.close()  # type: ignore[attr-defined]  # a generator, as every Iterator here
    go_on.set()


def test_no_hosts_have_no_answers() -> None:
    """Such as where no host runs the role."""
    assert list(fanout.each([], lambda _host, _tell: 1)) == []
