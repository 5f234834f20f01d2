"""The machines of the test bed are what the system tests take them for."""

from __future__ import annotations

from tests.system.conftest import Machine
from tests.workspace import ROOT


def test_the_user_has_a_manager_and_our_python(machine: Machine) -> None:
    """An unprivileged user, a running user manager, and this checkout's interpreter."""
    assert machine.run("id", "-un").stdout == "deploy\n"
    state = machine.run("systemctl", "--user", "is-system-running", check=False).stdout
    assert state.strip() in {"running", "degraded"}
    python = ROOT / ".venv" / "bin" / "python"
    done = machine.run(str(python), "-c", "import daemon, jinja2; print(daemon.__file__)")
    assert done.stdout.strip() == str(ROOT / "daemon" / "__init__.py")


def test_a_machine_without_systemd_has_none(bare_machine: Machine) -> None:
    """Where PID files are what is left."""
    assert bare_machine.run("test", "-e", "/run/systemd/system", check=False).returncode == 1
