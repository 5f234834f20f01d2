"""``invoke doctor``: what makes a host ready, and what to type where it is not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from daemon import worktree
from daemon.config import Config
from daemon.fleet import doctor, effective, install, mergedriver
from daemon.fleet.connection import Local
from daemon.fleet.doctor import Place
from daemon.fleet.finding import Finding
from daemon.fleet.here import UsageError
from daemon.fleet.output import Style
from daemon.fleet.supervisor import supervisor
from tests.console import git_init
from tests.queues import FileBackend
from tests.workspace import ROOT


class Machine:
    """A place to look at, with a PATH of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.workspace = git_init(path / "shop")
        self.bin = path / "bin"
        self.program(self.bin / "my-agent")
        self.environ = {"PATH": str(self.bin), "HOME": str(path)}
        backend = FileBackend(
            self.workspace, agent="command", command=("my-agent",), worktree=False
        )
        backend.fill()
        self.config = backend.config._replace(supervisor="pidfile")

    def program(self, path: Path, text: str = "") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def place(self) -> Place:
        return Place(
            self.environ,
            journal=str(self.path / "none"),
            mountinfo=str(self.path / "mountinfo"),
        )

    def builder(self, **changes: object) -> Config:
        roles = {**self.config.roles}
        roles["builder"] = roles["builder"]._replace(**changes)  # type: ignore[arg-type]
        return self.config._replace(roles=roles)

    def look(self, config: Config | None = None, role: str | None = None) -> list[Finding]:
        return doctor.examine(config or self.config, self.place(), role)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A host that is ready, under PID files."""
    return Machine(tmp_path)


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_a_ready_host_has_nothing_that_fails(machine: Machine) -> None:
    """Warnings may be left, and each says what to type."""
    findings = machine.look()
    assert not doctor.failed(findings)
    assert all(finding.hint for finding in findings if finding.state != "ok")


def test_a_missing_agent_fails_once_for_all_its_roles(machine: Machine) -> None:
    """The PATH that counts is the one that workers have."""
    (machine.bin / "my-agent").unlink()
    findings = machine.look()
    (found,) = of(findings, "agent")
    assert found.state == "fail"
    assert found.role == "planner, builder, tester, refiner, integrator"
    assert f"my-agent is not on the PATH that workers have ({machine.bin})" in found.what
    assert doctor.failed(findings)


def test_a_role_without_an_agent_fails(machine: Machine) -> None:
    """Its tasks would all go to a person."""
    (found,) = of(machine.look(machine.builder(agent=None), "builder"), "agent")
    assert (found.state, found.role) == ("fail", "builder")


def test_a_missing_cli_of_a_preset_says_how_to_install_it(machine: Machine) -> None:
    """Once it is on the PATH of workers, all is well."""
    config = machine.builder(agent="claude", command=())
    (found,) = of(machine.look(config, "builder"), "agent")
    assert found.state == "fail"
    assert "npm install --global @anthropic-ai/claude-code" in found.hint
    machine.program(machine.bin / "claude")
    (found,) = of(machine.look(config, "builder"), "agent")
    assert (found.state, found.what) == ("ok", f"{machine.bin}/claude")


def test_a_preset_that_was_never_run_says_so(machine: Machine) -> None:
    """It may well do: that is for the person to see."""
    machine.program(machine.bin / "goose")
    config = machine.builder(agent="goose", command=())
    (found,) = of(machine.look(config, "builder"), "agent")
    assert found.state == "warn"
    assert "from its vendor's documents, not run by us" in found.what
    assert found.hint.endswith("python -m daemon --role builder --once")


@pytest.mark.parametrize("command", ["tools/agent", "{workspace}/tools/agent"])
def test_an_agent_of_the_workspace_is_found(machine: Machine, command: str) -> None:
    """A relative path counts from the workspace."""
    machine.program(machine.workspace / "tools" / "agent")
    (found,) = of(machine.look(machine.builder(command=(command,)), "builder"), "agent")
    assert found.state == "ok"


def test_a_missing_gate_fails(machine: Machine) -> None:
    """It would block every task of the role."""
    (found,) = of(machine.look(machine.builder(gates=(("no-such-gate", "-q"),))), "gate")
    assert (found.state, found.role) == ("fail", "builder")


def test_a_gate_of_rolecalls_own_venv_is_warned_about(machine: Machine) -> None:
    """With the venv active where the doctor is typed, or a worker started, that is what runs."""
    machine.environ["PATH"] += f":{ROOT}/.venv/bin"
    (found,) = of(machine.look(machine.builder(gates=(("pytest", "-q"),))), "gate")
    assert (found.state, "Rolecall's own" in found.what) == ("warn", True)
    machine.program(machine.bin / "pytest")
    assert of(machine.look(machine.builder(gates=(("pytest", "-q"),))), "gate") == []


def test_a_secret_that_others_may_read_fails(machine: Machine) -> None:
    """The hint closes it; then its variables count as set."""
    secrets = machine.path / "builder.env"
    secrets.write_text("API_KEY=abcdef\n")
    secrets.chmod(0o644)
    config = machine.builder(env_file=str(secrets), pass_env=("API_KEY",))
    found = of(machine.look(config, "builder"), "secrets")
    assert (found[0].state, found[0].hint) == ("fail", f"chmod 600 {secrets}")
    secrets.chmod(0o600)
    (found,) = ([each] for each in of(machine.look(config, "builder"), "secrets"))
    assert found[0].state == "ok"
    assert "abcdef" not in str(found)


def test_a_variable_that_workers_do_not_have_is_warned_about(machine: Machine) -> None:
    """pass_env passes what is there, and says nothing when it is not."""
    config = machine.builder(pass_env=("API_KEY",))
    (found,) = of(machine.look(config, "builder"), "secrets")
    assert found.state == "warn"
    machine.environ["API_KEY"] = "x"
    assert not of(machine.look(config, "builder"), "secrets")


def test_a_prompt_that_is_named_must_be_there(machine: Machine) -> None:
    """One that nobody named has a built-in stand-in: the role's default."""
    (found,) = of(machine.look(role="builder"), "prompt")
    assert (found.state, found.what.endswith(": the default")) == ("ok", True)
    named = machine.builder(prompt=str(machine.path / "missing.md"))
    (found,) = of(machine.look(named, "builder"), "prompt")
    assert found.state == "fail"


def test_the_queue_is_read(machine: Machine) -> None:
    """A missing one is a warning, an unreadable one fails with its line."""
    queue = machine.workspace / "SPRINT_QUEUE.json"
    assert of(machine.look(), "queue")[0].state == "ok"
    queue.write_text('{"tasks": [\n<<<<<<< HEAD\n')
    (found,) = of(machine.look(), "queue")
    assert found.state == "fail"
    assert f"{queue}:2" in found.what
    queue.unlink()
    (found,) = of(machine.look(), "queue")
    assert found.state == "warn"
    assert "invoke init --workspace" in found.hint


def test_the_queue_is_counted_by_status(machine: Machine) -> None:
    """The most first; one task is one task."""
    queue = machine.workspace / "SPRINT_QUEUE.json"
    tasks = [{"id": f"T{n}", "status": "done" if n < 3 else "ready"} for n in range(1, 4)]
    queue.write_text(json.dumps({"tasks": tasks}))
    assert of(machine.look(), "queue")[0].what == f"3 tasks in {queue}: 2 done, 1 ready"
    queue.write_text(json.dumps({"tasks": tasks[:1]}))
    assert of(machine.look(), "queue")[0].what == f"1 task in {queue}: 1 done"


def test_tasks_that_nothing_here_takes_are_warned_about(machine: Machine) -> None:
    """The queue is this host's alone: what its own roles do not claim stays where it is."""
    queue = machine.workspace / "SPRINT_QUEUE.json"
    statuses = ("ready", "awaiting_test", "done", "needs_manual", "testing")
    tasks = [{"id": f"T{n}", "status": each} for n, each in enumerate(statuses)]
    queue.write_text(json.dumps({"tasks": tasks}))
    assert [each.state for each in of(machine.look(), "queue")] == ["ok"]
    _, found = of(machine.look(machine.config._replace(run=("builder",))), "queue")
    assert (found.state, found.hint) == ("warn", "put tester into run of this host")
    assert "nothing on this host takes awaiting_test (1 task)" in found.what


def test_our_own_checkout_is_a_workspace_for_no_role(machine: Machine) -> None:
    """A warning of the doctor's and a note of install's; without roles there is nothing to say."""
    config = machine.config._replace(workspace=str(ROOT))
    (found,) = of(machine.look(config), "workspace")
    assert (found.state, "run: []" in found.hint) == ("warn", True)
    connection = Local()
    assert install.lacks(connection, config, supervisor(connection, config))[1].startswith(
        f"{ROOT} is Rolecall's own checkout: invoke init --workspace DIR"
    )
    none = config._replace(run=())
    assert [each.state for each in of(machine.look(none), "workspace")] == ["ok"]
    assert "own checkout" not in str(install.lacks(connection, none, supervisor(connection, none)))


def test_a_workspace_that_is_not_there_is_said_first(machine: Machine) -> None:
    """A slip in the inventory, where another workspace is installed: not a second repository."""
    installed = {"agent.yml": effective.text(machine.config)}
    other = git_init(machine.path / "other")
    found = effective.problem(machine.config._replace(workspace=str(other)), installed)
    assert found
    assert "is used by another workspace" in found.problems[0].what
    slip = machine.config._replace(workspace=f"{machine.workspace}x")
    found = effective.problem(slip, installed)
    assert found
    assert found.problems[0].what == (
        f"this host has no {machine.workspace}x, and works on another workspace: "
        f"{machine.workspace}"
    )
    assert effective.problem(machine.config, installed) is None


def test_a_network_file_system_is_warned_about(machine: Machine) -> None:
    """The file queue serves one host on a local file system."""
    table = machine.path / "mountinfo"
    table.write_text("21 1 0:5 / / rw - nfs4 host:/ rw\n")
    found = of(machine.look(), "file system")
    assert [finding.state for finding in found] == ["warn", "warn"]


def test_what_pid_files_cannot_promise_is_said(machine: Machine) -> None:
    """Without cgroups a process can escape the end of its attempt."""
    (found,) = of(machine.look(), "process trees")
    assert found.state == "warn"
    assert "escapes" in found.what


def test_a_folder_that_is_no_repository_fails(machine: Machine) -> None:
    """The hint makes it one."""
    config = machine.config._replace(workspace=str(machine.path / "bin"))
    (found,) = of(machine.look(config), "workspace")
    assert (found.state, found.hint.split(" && ")[0]) == ("fail", f"git init {machine.bin}")


def test_a_merge_driver_whose_program_is_gone_is_warned_about(machine: Machine) -> None:
    """What was set up once outlives a checkout that moved; one that is there needs no line."""
    checkout = machine.path / "it's 100% mine"

    def found() -> list[Finding]:
        for key, value in mergedriver.settings(sys.executable, str(checkout)).items():
            worktree.git(str(machine.workspace), "config", key, value)
        return of(machine.look(), "merge driver")

    assert of(machine.look(), "merge driver") == []
    (gone,) = found()
    assert (gone.state, gone.hint) == ("warn", "invoke init --merge-driver")
    assert str(checkout) in gone.what
    checkout.symlink_to(ROOT)
    assert found() == []


def test_a_program_that_only_the_shell_finds_is_told_where_it_is(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIs are often in a folder that a login shell alone puts on PATH; the hint mends it."""
    machine.program(machine.path / "local" / "own-agent")
    monkeypatch.setenv("PATH", f"{machine.path}/local:{os.environ['PATH']}")
    config = machine.builder(command=("own-agent",))
    (found,) = (each for each in of(machine.look(config), "agent") if each.state == "fail")
    path = f"{machine.path}/local:{machine.bin}"
    assert found.hint.endswith(f'give the role env: {{PATH: "{path}"}}')
    mended = machine.builder(command=("own-agent",), env={"PATH": path})
    assert not doctor.failed(machine.look(mended))


def test_an_unknown_role_is_a_usage_error(machine: Machine) -> None:
    """With a guess."""
    with pytest.raises(UsageError, match="bilder"):
        machine.look(role="bilder")


def test_the_report_has_a_line_for_each_finding_and_escapes(machine: Machine) -> None:
    """Paths come from files too."""
    text = doctor.report(
        [Finding("queue", "fail", "bad \x1b[2J", "mend"), *machine.look()], Style()
    )
    assert "\\x1b[2J -> mend" in text
    assert len(text.splitlines()) == 1 + len(machine.look())
    assert os.environ["HOME"] not in text
