"""Machines with real systemd for the system tests, from the test bed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from tests.workspace import ROOT

TESTBED = ROOT / "tests" / "testbed" / "machine"
Done = subprocess.CompletedProcess[str]


class Machine:
    """A machine; it sees this checkout, at the same path, read-only, unless told otherwise."""

    def __init__(self, name: str, environ: dict[str, str]) -> None:
        self.name, self._environ = name, environ
        self.state = Path(environ["MACHINE_STATE"])

    @property
    def address(self) -> str:
        """Its IP address, of a machine with a network of its own."""
        hosts = (self.state / "hosts").read_text().splitlines()
        return next(each.split()[0] for each in hosts if each.split()[1] == self.name)

    @property
    def gateway(self) -> str:
        """The address of the host that carries the test bed, in that network."""
        return self.address.rpartition(".")[0] + ".1"

    def _testbed(self, *arguments: str, seconds: float = 120) -> Done:
        return subprocess.run(
            [str(TESTBED), *arguments],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def up(self, *options: str, shown: Collection[Path] = (ROOT, Path(sys.base_prefix))) -> None:
        """Make it, or power it on again. Skips the test where the host lacks what it takes."""
        shown = {*shown} - {Path("/usr")}
        binds = [f"--bind={path}:{path}" for path in shown if not path.is_relative_to("/usr")]
        done = self._testbed("up", self.name, *binds, *options)
        if "missing on this host" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        for path in shown:  # the way there may lead through a folder that is root's alone
            closed = [str(each) for each in path.parents if each != Path("/")]
            if closed:
                self.run("chmod", "a+x", *closed, root=True)

    def run(
        self, *command: str, root: bool = False, check: bool = True, seconds: float = 120
    ) -> Done:
        """Run a command inside, as the unprivileged user in its home."""
        as_root = ["--root"] if root else []
        done = self._testbed("exec", *as_root, self.name, "--", *command, seconds=seconds)
        if check and done.returncode:
            said = f"{done.stdout}\n{done.stderr}"
            raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{said}")
        return done

    def open(self, *command: str) -> subprocess.Popen[str]:
        """Start a command inside that is talked to by pipes."""
        return subprocess.Popen(
            [str(TESTBED), "exec", self.name, "--", *command],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sh(self, script: str, **keys: bool) -> Done:
        """Run a shell script inside."""
        return self.run("sh", "-c", script, **keys)

    def invoke(self, *arguments: str, check: bool = True) -> Done:
        """Run an invoke command of this checkout."""
        tool = ROOT / ".venv" / "bin" / "invoke"
        return self.run("env", f"--chdir={ROOT}", str(tool), *arguments, check=check)

    def kill(self) -> None:
        """Power loss: every process is gone at once, the disk is kept. ``up`` powers it on."""
        self._do("kill")

    def cut(self) -> None:
        """Unplug it from the network; nobody is told."""
        self._do("cut")

    def heal(self) -> None:
        """Plug it in again."""
        self._do("heal")

    def down(self) -> None:
        """Remove it with all it had."""
        self._do("down")

    def _do(self, verb: str) -> None:
        done = self._testbed(verb, self.name)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def testbed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Machine]]:
    """Names a machine, of a test bed apart from all others; ends every machine afterwards."""
    if os.geteuid():
        pytest.skip("the test bed needs root")
    claim, net = _claim_net()
    environ = {
        **os.environ,
        "MACHINE_STATE": str(tmp_path_factory.mktemp("testbed")),
        "MACHINE_NET": net,
    }
    # Test beds share the kernel's one tree of cgroups, in which a machine is known by its name.
    yield lambda name: Machine(f"{name}-{os.getpid()}", environ)
    done = subprocess.run(
        [str(TESTBED), "down", "--all"], env=environ, capture_output=True, text=True, check=False
    )
    claim.close()
    assert done.returncode == 0, done.stderr


def _claim_net() -> tuple[socket.socket, str]:
    """A network that no other test bed has, whoever runs it; the claim lasts as long as its socket.

    The test bed calls its interface here by the network's last number.
    """
    for number in range(78, 250):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0rolecall-testbed-{number}")
        except OSError:
            claim.close()
            continue
        if not Path(f"/sys/class/net/testbed{number}").exists():
            return claim, f"198.18.{number}"
        claim.close()
    pytest.skip("every network for test beds is in use: 198.18.78 to 198.18.249")


@pytest.fixture(scope="module")
def machine(testbed: Callable[[str], Machine]) -> Iterator[Machine]:
    """A machine with systemd and a lingering unprivileged user, for the tests of one module."""
    made = testbed("rolecall")
    made.up()
    yield made
    made.down()


@pytest.fixture(scope="module")
def bare_machine(testbed: Callable[[str], Machine]) -> Iterator[Machine]:
    """A machine without systemd."""
    made = testbed("bare")
    made.up("--no-systemd")
    yield made
    made.down()
