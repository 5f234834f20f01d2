"""What the suites of queues share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.realansible import Ansible


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Run something in a process of its own; none of them outlives the test."""
    pids: list[int] = []

    def start(run: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run()
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
        return pid

    yield start
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


@pytest.fixture(scope="session")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ansible]:
    """The real one, in a process of its own."""
    with Ansible.started(tmp_path_factory.mktemp("ansible")) as found:
        yield found
