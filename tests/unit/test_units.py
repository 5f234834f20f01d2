"""Rendering: config in, unit files out; and what a transient unit is made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jinja2 import StrictUndefined, UndefinedError

from daemon import transient
from daemon.config import Config, Limits, Paths, Role
from daemon.errors import RolecallError
from daemon.fleet import units

HOME = "/home/somebody"


def role(name: str, **more: object) -> Role:
    return Role(name, (f"for_{name}",), "held", "done", "no", "spent")._replace(**more)  # type: ignore[arg-type]


def config(workspace: str = f"{HOME}/shop", *roles: Role, prefix: str = "agent") -> Config:
    every = {each.name: each for each in roles or (role("builder"), role("tester"))}
    paths = Paths(*(f"{workspace}/.{name}" for name in Paths._fields))
    queue = f"file:{workspace}/queue.json"
    return Config(workspace, queue, "systemd", prefix, tuple(every), every, paths)


def rendered(made: Config, name: str = "agent-builder.service") -> list[str]:
    files = units.render(made, "/opt/py/bin/python", "/opt/rolecall", f"{HOME}/agent.yml")
    return files[name].splitlines()


def test_one_unit_for_each_role_a_target_and_a_slice() -> None:
    """Their names follow the prefix, so that two workspaces can live side by side."""
    files = units.render(config(prefix="shop"), "/p", "/c", "/f")
    names = ["shops.slice", "shops.target", "shop-builder.service", "shop-tester.service"]
    assert list(files) == names
    text = files["shop-builder.service"]
    for line in ("PartOf=shops.target", "Slice=shops.slice", "WantedBy=shops.target"):
        assert line in text.splitlines()
    assert "WantedBy=default.target" in files["shops.target"].splitlines()


def test_rendering_is_pure_and_repeatable() -> None:
    """The same config gives the same bytes, whatever is on this machine."""
    assert rendered(config()) == rendered(config())


def test_a_worker_unit_says_how_it_lives_and_ends() -> None:
    """The lines that an administrator looks for."""
    lines = rendered(config())
    for line in (
        "Type=notify",
        "NotifyAccess=main",
        "Restart=on-failure",
        "RestartPreventExitStatus=78",
        "KillMode=mixed",
        "WorkingDirectory=/opt/rolecall",
        (
            'ExecStart="/opt/py/bin/python" "-m" "daemon" "--role" "builder"'
            f' "--config" "{HOME}/agent.yml"'
        ),
        "PrivateUsers=yes",
        "PrivateNetwork=yes",
        f'ReadWritePaths="-{HOME}/shop"',
    ):
        assert line in lines
    settings = [line.partition("=")[0] for line in lines if "=" in line and line[0] != "#"]
    assert len(settings) == len(set(settings))


def test_a_queue_on_postgresql_opens_the_network_and_nothing_else() -> None:
    """The worker may speak to a server, and writes no folder of a queue that is a file."""
    made = config()
    shared = made._replace(queue="postgresql://db.example.com/shop")
    lines, others = rendered(shared), rendered(made)
    assert [line for line in lines if line not in others] == [
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
    ]
    assert [line for line in others if line not in lines] == [
        "PrivateNetwork=yes",
        "RestrictAddressFamilies=AF_UNIX",
    ]
    elsewhere = rendered(made._replace(queue="file:/elsewhere/q.json"))
    assert any("/elsewhere" in line for line in elsewhere)
    assert not any("postgresql" in line or "example" in line for line in lines)


def test_a_stop_may_take_longer_than_the_budget_and_both_graces() -> None:
    """Else systemd would kill a worker that is ending its attempts."""
    slow = role("builder", stop_budget=100.5, kill_grace=20.0)
    line = next(
        line for line in rendered(config(f"{HOME}/x", slow)) if line.startswith("TimeoutStopSec=")
    )
    assert int(line.partition("=")[2]) > 100.5 + 2 * 20


def test_what_systemd_would_expand_is_escaped() -> None:
    """Percent signs everywhere, dollar signs in commands, quotes where there are words."""
    made = config("/w/a %h $HOME 'b' \"c\"")
    lines = rendered(made)
    assert "Description=Rolecall builder of /w/a %%h $HOME 'b' \"c\"" in lines
    assert 'ReadWritePaths="-/w/a %%h $HOME \'b\' "\'"\'"c"\'"\'""' in lines
    files = units.render(made, '/p y/%n$x"', "/c %h", "/f")
    assert 'ExecStart="/p y/%%n$$x\\"" "-m"' in files["agent-builder.service"]
    assert "WorkingDirectory=/c %%h\n" in files["agent-builder.service"]


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\x1bb"])
def test_a_path_that_no_unit_can_name_is_refused(name: str) -> None:
    """A line break would be a line of its own."""
    with pytest.raises(RolecallError, match="systemd cannot be told"):
        rendered(config(f"/w/{name}"))


def test_a_template_that_asks_for_what_is_not_there_fails() -> None:
    """Nothing is silently left out."""
    environment = units._environment()
    assert environment.undefined is StrictUndefined
    with pytest.raises(UndefinedError):
        environment.from_string("{{ nothing }}").render()


def test_a_unit_tells_whose_it_is() -> None:
    """The first line names the workspace; a file without it is nobody's of ours."""
    made = config('/w/a "b"')
    for text in units.render(made, "/p", "/c", "/f").values():
        assert units.workspace_of(text) == '/w/a "b"'
    assert units.workspace_of("[Unit]\n") is None
    assert units.workspace_of(units.MARK + "\n") is None


def test_an_attempt_is_confined_and_limited() -> None:
    """Its writable paths and its limits are the role's own."""
    limited = role("builder", limits=Limits("4G", "200%", 512), write_paths=(f"{HOME}/.cache/uv",))
    made = transient.properties(limited, config(f"{HOME}/shop", limited))
    assert {"PrivateUsers=yes", "NoNewPrivileges=yes", "ProtectHome=read-only"} <= set(made)
    assert {"MemoryMax=4G", "CPUQuota=200%", "TasksMax=512", "KillMode=mixed"} <= set(made)
    assert f'ReadWritePaths="-{HOME}/.cache/uv" "-{HOME}/shop"' in made
    assert not any(each.startswith("MemoryDenyWriteExecute") for each in made)  # node needs it
    free = transient.properties(role("builder"), config())
    assert not any(each.startswith(("MemoryMax", "CPUQuota", "TasksMax")) for each in free)


def test_an_attempts_unit_makes_the_folders_that_its_cli_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its read-only HOME the CLI cannot; and once they are there, that costs no start."""
    home = tmp_path / 'a $HOME "b"'
    monkeypatch.setenv("HOME", str(home))
    claude = role("builder", agent="claude")
    made = next(each for each in transient.properties(claude, config()) if "mkdir" in each)
    assert made.startswith("ExecStartPre=+:mkdir -p -m 700 -- ")
    quoted = str(home).replace('"', '"\'"\'"')
    assert made.endswith(f' "{quoted}/.claude" "{quoted}/.cache"')
    for path in transient.missing_state(claude):
        os.makedirs(path)
    assert "mkdir" not in " ".join(transient.properties(claude, config()))
    assert transient.missing_state(role("builder", agent="command", command=("x",))) == []


def test_no_value_of_the_environment_reaches_a_unit() -> None:
    """Secrets go in by other ways."""
    secret = role("builder", env={"TOKEN": "swordfish"}, env_file="/secret/file")
    made = config(f"{HOME}/shop", secret)
    argv = transient.start_argv("u", secret, made, ["agent"], made.workspace)
    assert "swordfish" not in " ".join([*argv, *rendered(made)])
    assert "/secret/file" not in " ".join(argv)


def test_the_command_of_an_attempt_is_taken_literally() -> None:
    """The manager would expand ``${HOME}``."""
    argv = transient.start_argv("u", role("builder"), config(), ["a", "${HOME} %h $x"], "/w")
    assert argv[argv.index("--") :] == ["--", "a", "$${HOME} %h $$x"]


def test_an_attempts_unit_is_no_workers_unit() -> None:
    """``systemctl stop 'agent-*'`` must leave it to the worker; prefixes do not collide."""
    assert transient.unit_name("T1", 3) == "rolecall-attempt-T1-3.service"
    assert transient.unit_name("T1", 3, "shop") == "rolecall-shop-attempt-T1-3.service"


def test_a_workspace_below_tmp_is_shown_in_a_tmp_of_its_own() -> None:
    """PrivateTmp would hide it."""
    below = "/tmp/a b/shop"  # noqa: S108  # nothing is made there
    made = transient.sandbox(config(below))
    assert f'BindPaths="-{below}"' in made
    assert not any(each.startswith("BindPaths") for each in transient.sandbox(config()))


def test_the_repository_of_a_worktree_is_writable(tmp_path: Path) -> None:
    """A commit in a worktree writes the repository that it belongs to."""
    worktree, repository = tmp_path / "worktree", tmp_path / "main" / ".git"
    (repository / "worktrees" / "worktree").mkdir(parents=True)
    worktree.mkdir()
    (worktree / ".git").write_text(f"gitdir: {repository}/worktrees/worktree\n")
    assert transient.writable(config(str(worktree))) == sorted([str(worktree), str(repository)])


def test_paths_outside_the_workspace_are_writable_too(tmp_path: Path) -> None:
    """The queue's folder, behind a link; leases that are kept elsewhere."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "queue.json").touch()
    os.symlink(real / "queue.json", tmp_path / "link.json")
    made = config("/w/shop")
    made = made._replace(
        queue=f"file:{tmp_path}/link.json", paths=made.paths._replace(leases="/w/leases")
    )
    assert transient.writable(made) == sorted(["/w/shop", "/w/leases", str(real)])


def test_only_a_process_of_the_user_manager_starts_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent, or a shell under a worker, inherits the variable and is not it."""
    monkeypatch.setenv("MANAGERPID", "1")
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    assert transient.available()
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getppid()))
    assert not transient.available()
    monkeypatch.delenv("MANAGERPID")
    assert not transient.available()
