"""A conversation with a host, held against a far side that a test writes; ssh is a stand-in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon import config as configs
from daemon.errors import ConfigError, RolecallError
from daemon.fleet import agents, deploy, remote, runtime
from daemon.fleet.connection import NoAnswer, Unreachable
from daemon.inventory import Host, Inventory
from tests.workspace import PATIENCE

#: What stands for ssh: it takes the size of stage 0 from the command line, and then plays the host.
PLAYER = f"""#!{sys.executable}
import json, os, re, sys
def take(size):
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            break
        data += part
    return data
def frame():
    return json.loads(take(int(take(8), 16)))
def say(**message):
    os.write(1, b"\\x1erolecall " + json.dumps(message).encode() + b"\\n")
def keep(**facts):
    with open(os.environ["KEPT"], "a") as file:
        file.write(json.dumps(facts) + "\\n")
FACTS = {{"home": "/home/deploy", "kind": "some-kind", "releases": []}}
zero = take(int(re.search(r"\\br\\((\\d+)\\)", sys.argv[-1])[1]))
hello = frame()
keep(zero=len(zero), hello=hello)
exec(os.environ["PLAY"])
"""
UPLOAD = (
    'request = frame(); sent = take(request["upload"]); keep(request=request, sent=len(sent))\n'
)
HOSTS = """
all:
  hosts:
    web1:
      workspace: ~/src/shop
      roles: {builder: {agent: command, command: [my-agent], env_file: ~/secret.env}}
"""


class Play:
    """Asks a host that is played by a program."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "bin").mkdir()
        (folder / "bin" / "ssh").write_text(PLAYER)
        (folder / "bin" / "ssh").chmod(0o755)
        (folder / "inventory").mkdir()
        (folder / "inventory" / "hosts.yml").write_text(HOSTS)
        self.kept = folder / "kept"
        self.inventory = Inventory.load(str(folder / "inventory"))
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("KEPT", str(self.kept))
        self.told: list[str] = []
        self.lines: list[str] = []

    @property
    def host(self) -> Host:
        return self.inventory.hosts()[0]

    def ask(
        self, play: str, verb: str = "status", timeout: float = PATIENCE, **options: Any
    ) -> Any:
        self.monkeypatch.setenv("PLAY", play)
        return remote.call(
            self.inventory,
            self.host,
            verb,
            options,
            timeout=timeout,
            tell=self.told.append,
            line=self.lines.append,
        )

    def fails(self, play: str, verb: str = "status", **keys: Any) -> RolecallError:
        with pytest.raises(RolecallError) as caught:
            self.ask(play, verb, **keys)
        return caught.value

    def facts(self, name: str) -> list[Any]:
        lines = [json.loads(line) for line in self.kept.read_text().splitlines()]
        return [each[name] for each in lines if name in each]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    return Play(tmp_path, monkeypatch)


def test_a_verb_goes_with_the_config_of_that_home(play: Play) -> None:
    """Paths of ``~`` become the host's; nothing is sent beside it where the verb needs nothing."""
    result = play.ask(f'say(facts=FACTS); {UPLOAD}say(result=[{{"role": "builder"}}])', role="x")
    assert result == [{"role": "builder"}]
    assert play.facts("hello") == [{"protocol": 1, "prefix": "agent"}]
    assert play.facts("zero") == [len(runtime.stage_zero())]
    (request,) = play.facts("request")
    config = configs.from_json(request.pop("config"))
    assert config.workspace == "/home/deploy/src/shop"
    assert config.roles["builder"].env_file == "/home/deploy/secret.env"
    assert request == {
        "release": None,
        "upload": 0,
        "keep": True,
        "verb": "status",
        "options": {"role": "x"},
    }


def test_a_release_is_sent_where_the_host_lacks_it(play: Play) -> None:
    """And no byte of it where it has it; what only looks is not kept there."""
    release = runtime.build()
    has = f'FACTS["releases"] = [{release.id!r}]; '
    rest = f"say(facts=FACTS); {UPLOAD}say(result=1)"
    for before, verb, options in (
        ("", "install", {}),
        (has, "install", {}),
        ("", "deploy", {}),
        ("", "install", {"check": True}),
        ("", "start", {}),
    ):
        assert play.ask(before + rest, verb, **options) == 1
    whole = len(release.archive)
    assert play.facts("sent") == [whole, 0, whole, whole, 0]
    assert [each["release"] for each in play.facts("request")] == [release.id] * 4 + [None]
    assert [each["keep"] for each in play.facts("request")] == [True, True, True, False, True]


def test_a_damaged_release_is_sent_again_once(play: Play) -> None:
    """Although the host has it by name; if it comes to no good again, that is the answer."""
    release = runtime.build()
    damaged = (
        'say(error={"problems": [["x", "is damaged", ""]], "exit_code": 1, "code": "damaged"})'
    )
    begin = f'FACTS["releases"] = [{release.id!r}]; say(facts=FACTS); {UPLOAD}'
    assert play.ask(f"{begin}\nif sent: say(result=1)\nelse: {damaged}", "install") == 1
    assert play.facts("sent") == [0, len(release.archive)]
    assert "is damaged" in str(play.fails(f"{begin}\n{damaged}", "install"))
    assert play.facts("sent")[2:] == [0, len(release.archive)]
    assert "is damaged" in str(play.fails(f"{begin}\n{damaged}", "status"))
    assert play.facts("sent")[4:] == [0]


def test_what_is_told_on_the_way_is_passed_on(play: Play) -> None:
    """Lines for the person and lines of logs, each to its own; what is unknown is not minded."""
    steps = 'say(alive=1); say(tell="waits"); say(line="a log\\x1b[2J"); say(tell=3); say(new={})'
    assert play.ask(f"{steps}; say(facts=FACTS); {UPLOAD}{steps}; say(result=None)") is None
    assert play.told == ["waits"] * 2
    assert play.lines == ["a log\x1b[2J"] * 2


def test_a_host_without_rolecall_is_no_error(play: Play) -> None:
    """Its answer is None."""
    assert play.ask(f"say(facts=FACTS); {UPLOAD}say(result=None, missing=True)") is None


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (1, RolecallError, 1),
        (78, ConfigError, 78),
        (4, Unreachable, 4),
        (0, RolecallError, 1),
        (999, RolecallError, 1),
        ([], RolecallError, 1),
        ("x", RolecallError, 1),
    ],
)
def test_an_error_there_is_the_same_error_here(
    play: Play, status: object, kind: type[RolecallError], exit_code: int
) -> None:
    """With all of its problems, and the exit status that it deserves; never with none."""
    problems = [["a:1", "is wrong", "mend it"], ["", "is wrong, too", ""]]
    error = {"problems": problems, "exit_code": status}
    found = play.fails(f"say(facts=FACTS); {UPLOAD}say(error={error!r})")
    assert type(found) is kind
    assert [list(each) for each in found.problems] == problems
    assert found.exit_code == exit_code


@pytest.mark.parametrize("error", [1, {}, {"problems": 1}, {"problems": [1, ["a"], [1, 2, 3]]}])
def test_an_error_without_sense_is_one_all_the_same(play: Play, error: object) -> None:
    """It says that it failed, at least."""
    found = play.fails(f"say(facts=FACTS); {UPLOAD}say(error={error!r})")
    assert "does not say why" in str(found)


@pytest.mark.parametrize(
    "facts",
    [1, {}, {"home": "~"}, {"kind": 1}, {"releases": "x"}, {"releases": [1]}, {"home": "/\0"}],
)
def test_facts_without_sense_are_an_error(play: Play, facts: object) -> None:
    """Nothing is sent to such a host."""
    merge = f"FACTS.update({facts!r})" if facts and facts != 1 else f"FACTS = {facts!r}"
    found = play.fails(f"{merge}; say(facts=FACTS); {UPLOAD}")
    assert "makes no sense" in str(found)
    assert play.facts("sent") == [] or not play.facts("request")


def test_a_host_that_cannot_take_part_is_unreachable(play: Play) -> None:
    """As one with too old a Python: exit status 4, in its own words."""
    error = {"problems": [["/usr/bin/python3", "Python 3.9.2 is too old", "newer"]], "exit_code": 1}
    found = play.fails(f"say(error={error!r})")
    assert (type(found), found.exit_code) == (NoAnswer, 4)
    assert "Python 3.9.2 is too old" in str(found)


def test_a_release_of_another_kind_of_machine_is_not_sent(play: Play, tmp_path: Path) -> None:
    """Where the LLM loop's packages bind it to one."""
    hosts = HOSTS.replace("agent: command, command: [my-agent]", "agent: llm, model: openai:some")
    (tmp_path / "inventory" / "hosts.yml").write_text(hosts)
    play.inventory = Inventory.load(play.inventory.folder)
    found = play.fails(f"say(facts=FACTS); {UPLOAD}", "install")
    assert "this host is some-kind" in str(found)
    assert play.facts("sent") == []


def test_a_call_that_breaks_off_says_when(play: Play) -> None:
    """Before anything was asked, and after."""
    found = play.fails(
        'sys.stderr.write("Connection to web1 closed by remote host.\\r\\n"); sys.exit(255)'
    )
    assert str(found).startswith("error: the connection broke off\n")
    found = play.fails(f"say(facts=FACTS); {UPLOAD}sys.exit(255)", "install")
    assert "the connection was lost in the middle of install: ssh failed" in str(found)
    assert found.exit_code == 4
    found = play.fails("import time; time.sleep(600)", timeout=0.5)
    assert str(found).startswith("error: no answer within 0.5 s")


def test_a_host_that_answers_is_not_unreachable(play: Play) -> None:
    """It has failed, which is another exit status than that of one that cannot be reached."""
    error = {"problems": [["", "it is broken", "mend it"]], "exit_code": 1}
    play.monkeypatch.setenv("PLAY", f"say(facts=FACTS); {UPLOAD}say(error={error!r})")
    rows = agents.status(play.inventory, play.inventory.hosts()).rows
    assert [(row.state, row.text) for row in rows] == [("failed", "it is broken")]
    assert agents.exit_status(rows) == agents.SOME_DO_NOT_RUN


WOULD = '{"host": "x", "supervisor": "pidfile", "state": "would deploy"}'


@pytest.mark.parametrize(
    ("then", "state", "exit_code"),
    [
        ('say(error={"problems": [["", "no user manager", ""]], "exit_code": 4})', "unchanged", 4),
        ("sys.exit(255)", "not known", 4),
        ("os.write(1, b'\\x1erolecall 7\\n')", "not known", 4),
        ("say(result=7)", "not known", 1),
        ('say(result={"host": "x", "supervisor": "y", "state": "put back"})', "put back", 1),
    ],
)
def test_a_deploy_knows_what_it_does_not_know(
    play: Play, capsys: pytest.CaptureFixture[str], then: str, state: str, exit_code: int
) -> None:
    """What a host says itself is so; where nothing sensible came back, it may be either way."""
    play.monkeypatch.setenv(
        "PLAY",
        f"say(facts=FACTS); {UPLOAD}\n"
        f'if request["options"].get("check"): say(result={WOULD})\nelse: {then}',
    )
    assert deploy.deploy(play.inventory, play.inventory.hosts()) == exit_code
    err = capsys.readouterr().err
    assert f"{state}: web1\n" in err
    assert ("web1: ends it, or puts it back, by itself" in err) is (state == "not known")


def test_a_host_that_has_answered_may_think_for_longer(play: Play) -> None:
    """It says that it lives every 2 s: no ``timeout`` is too short for a host that works."""
    slow = "import time\nfor n in range(2): time.sleep(2); say(alive=1)\nsay(result=1)"
    assert play.ask(f"say(facts=FACTS); {UPLOAD}\n{slow}", timeout=1) == 1


def test_a_look_that_never_ends_is_ended(play: Play) -> None:
    """A host may be alive, and hang: in a folder of a server that is gone, for one."""
    for_ever = "import time\nwhile True: time.sleep(0.2); say(alive=1)"
    found = play.fails(f"say(facts=FACTS); {UPLOAD}\n{for_ever}", timeout=1)
    assert str(found) == (
        "error: it is alive, but status has not come to its end in 12 s\nhint:  ssh web1"
    )
    assert found.exit_code == 4


@pytest.mark.parametrize(
    ("verb", "options", "looks"),
    [
        ("status", {}, True),
        ("doctor", {"in_unit": 0}, True),
        ("doctor", {"in_unit": 120}, False),
        ("install", {"check": True}, True),
        ("deploy", {"check": False}, False),
        ("stop", {}, False),
        ("logs", {"follow": False}, False),
    ],
)
def test_only_a_look_has_an_end_that_is_near(
    play: Play, verb: str, options: dict[str, Any], *, looks: bool
) -> None:
    """A stop may have a whole attempt to wait for, and is waited for while the host lives."""
    asked = remote.Asked(play.inventory, play.host, verb, options, None, 1.0)
    assert asked.looks is looks
