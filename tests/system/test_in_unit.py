"""Agent CLIs inside an attempt's unit, and ``doctor --in-unit``, on a machine with real systemd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import agents
from tests import agentclis, standin
from tests.fakellm import served
from tests.fleet import Fleet, Inside, build
from tests.system.conftest import Machine
from tests.workspace import ROOT

REAL = ("claude", "codex")  # opencode, too, does it; it wants twenty seconds where no network is
HOME = "/home/deploy"
HERE = f"{HOME}/bin"
SHOWN = Path("/opt/agent-clis")  # a unit has a /tmp of its own
SYSTEM = "/usr/local/bin:/usr/bin:/bin"


def programs() -> dict[str, Path]:
    """The real CLIs that are installed here."""
    found = {}
    for name in REAL:
        preset = agents.find(name)
        path = shutil.which(preset.argv[0], path=agentclis.path()) if preset else None
        if path:
            found[name] = Path(path)
    return found


def seen(path: Path) -> tuple[Path, list[str]]:
    """Where a machine and its units see the program, and the option that shows it to them."""
    folder = path.parents[2]  # whose node_modules/.bin it is in
    if folder.is_relative_to("/usr") or folder.is_relative_to(ROOT):
        return path, []
    return SHOWN / path.relative_to(folder), [f"--bind={folder}:{SHOWN}"]


@pytest.fixture(scope="module")
def place(testbed: Callable[[str], Machine]) -> Iterator[Machine]:
    made = testbed("in-unit")
    made.up(*{option for path in programs().values() for option in seen(path)[1]})
    yield made
    made._testbed("down", made.name)


@pytest.fixture(scope="module")
def inside(place: Machine) -> Iterator[Inside]:
    made = Inside(place)
    yield made
    made.close()


@pytest.fixture
def fleet(inside: Inside) -> Iterator[Fleet]:
    """A workspace with a commit, in a HOME that no CLI has ever been run in."""
    made = Fleet(inside, "auto")
    made.configure({"builder": {"agent": "claude"}})
    who = "-c user.name=T -c user.email=t@example.org"
    made.sh(f"git -C {made.workspace} {who} commit --quiet --allow-empty --message=First")
    yield made
    done = made.invoke("uninstall")
    made.sh(f"rm -rf {made.workspace} {made.inventory} bin .cache .claude* .codex")
    assert done.returncode == 0, done.stderr


def examined(fleet: Fleet) -> dict[str, dict[str, str]]:
    said = fleet.invoke("doctor", "--in-unit", "--json").stdout
    return {each["check"]: each for each in json.loads(said)}


def left(fleet: Fleet) -> tuple[str, ...]:
    """The user's units, files outside of the CLI's own folder, and processes."""
    units = "systemctl --user list-units --all --plain --no-legend | cut -d' ' -f1"
    files = "find . /tmp -path ./.claude -prune -o -path './*.inventory' -prune -o -type f -print"
    processes = "pgrep --uid deploy --full '[d]aemon.trial|[s]leep 300'"
    return fleet.sh(units), fleet.sh(f"{files} 2>/dev/null || :"), fleet.sh(f"{processes} || :")


def test_a_trial_is_in_an_attempts_unit_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """Before anything is installed: its sandbox, its PATH, its folders, by effect; then no trace.

    The CLI's folder of state was missing, and is made for it, for itself it could not.
    """
    script = """
    touch ~/.claude/state /tmp/made && ! touch ~/made && ! touch /etc/made || exit 7
    grep -q 'NoNewPrivs:.1' /proc/self/status && [ "$EXTRA" = 1 ] && [ "$TERM" = dumb ] || exit 8
    sleep 300 &
    """
    text = standin.claude(tmp_path / "bin", script).read_text()
    fleet.write("bin/claude", text)
    fleet.write("env", f"PATH={HERE}:{SYSTEM}\nEXTRA=1\n")
    fleet.sh("chmod 700 bin/claude; chmod 600 env")
    fleet.configure({"builder": {"agent": "claude", "env_file": "~/env"}})
    before = left(fleet)
    findings = examined(fleet)
    assert findings["answer"]["what"].startswith("answered in "), findings
    assert findings["cli"]["what"] == f"Claude Code {standin.VERSION}, {HERE}/claude"
    assert findings["state"]["state"] == "ok"
    assert left(fleet) == before
    assert fleet.sh("stat -c %a .claude").strip() == "700"


def test_a_cli_that_is_missing_fails_with_what_installs_it(fleet: Fleet) -> None:
    """The PATH that counts is the unit's; a folder that was made for it is taken back."""
    finding = examined(fleet)["cli"]
    preset = agents.find("claude")
    assert preset
    assert (finding["state"], finding["hint"]) == ("fail", preset.install)
    assert "/usr/bin" in finding["what"]
    assert fleet.shell("ls -d .claude").returncode


def real(fleet: Fleet, name: str, url: str) -> dict[str, Any]:
    """Have the builder run the real CLI, which talks to the LLM of the scenario."""
    if name not in programs():
        pytest.skip(agentclis.missing(name))
    role = agentclis.role(name, url)
    role["env"] = {**role["env"], "PATH": f"{seen(programs()[name])[0].parent}:{SYSTEM}"}
    fleet.configure({"builder": {**role, "timeout": 60}})
    return role


@pytest.mark.parametrize("name", REAL)
def test_a_real_cli_works_in_an_attempts_unit_at_its_first_run(fleet: Fleet, name: str) -> None:
    """In a read-only HOME that holds nothing of it; ``evidence`` sees that it edited."""
    with served() as llm:
        real(fleet, name, f"{llm}/edit")
        found = examined(fleet)
        assert found.get("answer", {}).get("state") == "ok", found["cli"]
        fleet.sh("rm -rf .claude* .codex .cache")
        fleet.write_queue(build())
        fleet.do("install")
        fleet.do("agents.start")
        fleet.wait_status("awaiting_test")
        made = fleet.sh(f"cat {fleet.workspace}/.worktrees/T1/AGENT.txt")
        assert made.strip() == "edited-by-agent"


def test_a_real_cli_without_a_login_fails_with_what_logs_it_in(fleet: Fleet) -> None:
    """HTTP 401 is told at once."""
    with served() as llm:
        real(fleet, "claude", f"{llm}/e401")
        finding = examined(fleet)["answer"]
    assert (finding["state"], "401" in finding["what"]) == ("fail", True)
    assert finding["hint"].startswith("log in: claude")
