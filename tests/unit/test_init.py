"""``invoke init``: what it makes, what it keeps, what it refuses."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from daemon import prompt
from daemon.errors import RolecallError
from daemon.fleet import here, mergedriver
from daemon.fleet.init import init, repository, set_workspace
from tests.console import git_init, write_inventory


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """An inventory of the five roles that names no workspace."""
    return write_inventory(tmp_path / "inventory")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A repository to give to Rolecall."""
    return git_init(tmp_path / "shop")


def did(steps: list[object]) -> set[str]:
    return {str(step).split()[0] for step in steps}


def test_a_repository_gets_all_that_it_needs(shop: Path, inventory: Path) -> None:
    """Queue, five prompts, an inventory entry, and git leaves our paths alone."""
    init(str(shop), str(inventory))
    queue = shop / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"
    document = json.loads(queue.read_text())
    assert document["tasks"] == []
    assert document["wip_limits"]["tester"] == 1
    assert "metadata" in document
    assert queue.read_text() == json.dumps(document, indent=2) + "\n"
    prompts = {path.stem for path in (shop / ".oodatcaa" / "prompts").iterdir()}
    assert prompts == {"planner", "builder", "tester", "refiner", "integrator"}
    entry = yaml.safe_load((inventory / "host_vars" / "localhost.yml").read_text())
    assert entry == {"workspace": str(shop)}
    assert here.fleet(str(inventory)).config().workspace == str(shop)
    for name in (".leases", ".locks", ".agent-runs", ".agent-daemon-logs", ".agent-daemon-pids"):
        (shop / name).mkdir()
        (shop / name / "file").touch()
    seen = subprocess.run(
        ["git", "-C", str(shop), "status", "--short"], capture_output=True, text=True, check=True
    )
    assert seen.stdout == "?? .oodatcaa/\n"


def test_the_second_time_changes_nothing(shop: Path, inventory: Path) -> None:
    """Every line says kept, and every file is the same to the byte and the second."""
    init(str(shop), str(inventory), merge_driver=True)
    roots = (shop, inventory)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for r in roots for p in r.rglob("*")}
    steps = init(str(shop), str(inventory), merge_driver=True)
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for r in roots for p in r.rglob("*")}
    assert {step.did for step in steps} == {"kept", "commit"}
    assert before == after


def test_the_file_of_the_host_that_is_there_is_the_one_that_is_changed(
    shop: Path, inventory: Path
) -> None:
    """Whatever its suffix: a second one beside it would not be read. A folder is a person's."""
    entry = inventory / "host_vars" / "localhost.yaml"
    entry.parent.mkdir(exist_ok=True)
    entry.write_text("unblock: false\n")
    init(str(shop), str(inventory))
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]
    assert yaml.safe_load(entry.read_text()) == {"workspace": str(shop), "unblock": False}
    entry.unlink()
    (entry.parent / "localhost").mkdir()
    with pytest.raises(RolecallError, match="folder of variables") as caught:
        init(str(shop), str(inventory))
    assert f"workspace: {shop}" in caught.value.problems[0].hint


def test_an_untracked_queue_is_told_of_at_the_end(shop: Path, inventory: Path) -> None:
    """A git stash -u takes it away from under its workers; committed, or ignored, it stays."""
    told = init(str(shop), str(inventory))[-1]
    assert str(told) == (
        f"commit   {shop}/.oodatcaa (what is untracked, git stash -u and git clean take away)"
    )
    subprocess.run(["git", "-C", str(shop), "add", ".oodatcaa"], check=True)
    assert init(str(shop), str(inventory))[-1].did != "commit"


def test_what_stands_there_is_kept(shop: Path, inventory: Path) -> None:
    """A queue, a prompt, host variables and exclude lines of a person's own survive."""
    queue = shop / ".oodatcaa" / "work" / "SPRINT_QUEUE.json"
    queue.parent.mkdir(parents=True)
    queue.write_text("<<<<<<< HEAD\n")
    own = shop / ".oodatcaa" / "prompts" / "builder.md"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    exclude = shop / ".git" / "info" / "exclude"
    exclude.write_text("*.tmp")
    entry = inventory / "host_vars" / "localhost.yml"
    entry.write_text("# mine\nrun: [builder]  # only this one\n")
    init(str(shop), str(inventory))
    assert queue.read_text() == "<<<<<<< HEAD\n"
    assert own.read_text() == "mine"
    assert exclude.read_text().startswith("*.tmp\n/.leases/\n")
    assert "# mine" in entry.read_text()
    assert "run: [builder]  # only this one\n" in entry.read_text()
    assert here.fleet(str(inventory)).config().run == ("builder",)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("workspace: # here\nrun: [builder]\n", "workspace: /new # here\nrun: [builder]\n"),
        ('run: [builder]\nworkspace: ""\n', "run: [builder]\nworkspace: /new\n"),
        ("workspace:\n", "workspace: /new\n"),
        ("# mine\n", "# mine\nworkspace: /new\n"),
        ("---\nrun: [builder]", "---\nworkspace: /new\nrun: [builder]"),
        ("", "workspace: /new\n"),
    ],
)
def test_a_workspace_that_is_unset_changes_that_value_only(
    tmp_path: Path, before: str, after: str
) -> None:
    """Comments, order and quotes of all else stay as they were."""
    path = tmp_path / "localhost.yml"
    path.write_text(before)
    assert set_workspace(str(path), "/new").did == "changed"
    assert path.read_text() == after


def test_another_workspace_is_refused_with_what_to_type(tmp_path: Path, inventory: Path) -> None:
    """Nothing is changed; typed as it says, the other one has an inventory and a prefix of its own.

    Broken once by replacing the workspace: the first one's workers were started on.
    """
    first, second = git_init(tmp_path / "one"), git_init(tmp_path / "Two Shops")
    init(str(first), str(inventory))
    entry = inventory / "host_vars" / "localhost.yml"
    before = entry.read_text()
    with pytest.raises(RolecallError, match="another workspace") as refused:
        init(str(second), str(inventory))
    assert entry.read_text() == before
    assert not (second / ".oodatcaa").exists()
    copy, unit_prefix, told, export = refused.value.problems[0].hint.splitlines()[1:5]
    subprocess.run(["sh", "-ec", f"{copy}\n{unit_prefix}"], check=True)
    words = shlex.split(told)
    assert words[:3] == ["invoke", "init", "--inventory"]
    init(words[5], words[3])
    found = here.fleet(words[3]).config()
    assert (found.workspace, found.unit_prefix) == (str(second), "two-shops")
    assert here.fleet(str(inventory)).config().workspace == str(first)
    assert f"ROLECALL_INVENTORY={words[3]}" in export


@pytest.mark.parametrize("old", ["{shop}", "{shop}/", "shop", "./shop/../shop"])
def test_the_same_workspace_in_other_words_is_kept(shop: Path, inventory: Path, old: str) -> None:
    """With a slash behind it, or relative to what the inventory stands in."""
    entry = inventory / "host_vars" / "localhost.yml"
    entry.write_text(f"workspace: {old.format(shop=shop)}\n")
    assert init(str(shop), str(inventory))[0].did == "kept"
    assert here.fleet(str(inventory)).config().workspace.rstrip("/") == str(shop)


def test_a_path_of_any_characters_is_written_as_yaml(tmp_path: Path) -> None:
    """Colons, quotes, hashes and letters of any alphabet come back as they were."""
    for name in ("a: b", 'it\'s "x"', "x #y", "Größe", "- z", "{a}", "back\\slash"):
        path = tmp_path / "localhost.yml"
        path.unlink(missing_ok=True)
        set_workspace(str(path), f"/{name}")
        assert yaml.safe_load(path.read_text()) == {"workspace": f"/{name}"}


@pytest.mark.parametrize("text", ["- a list\n", "{run: [builder]}\n", "a: b: c\n", "text\n"])
def test_variables_that_cannot_be_added_to_are_left_alone(tmp_path: Path, text: str) -> None:
    """The error names the file and the line; not a byte is changed."""
    path = tmp_path / "localhost.yml"
    path.write_text(text)
    with pytest.raises(RolecallError) as error:
        set_workspace(str(path), "/new")
    assert f"{path}:1" in str(error.value)
    assert path.read_text() == text


def test_a_folder_that_is_no_repository_says_what_to_type(tmp_path: Path, inventory: Path) -> None:
    """Nothing is made; the hint is the command."""
    plain = tmp_path / "plain folder"
    plain.mkdir()
    with pytest.raises(RolecallError) as error:
        init(str(plain), str(inventory))
    assert str(error.value).endswith(f"hint:  git init '{plain}'")
    assert not list(plain.iterdir())
    assert not list((inventory / "host_vars").iterdir())
    with pytest.raises(RolecallError, match="no such folder"):
        repository(str(tmp_path / "missing"))


def test_a_folder_inside_a_repository_names_its_top(shop: Path) -> None:
    """The workspace is the repository."""
    (shop / "src").mkdir()
    with pytest.raises(RolecallError) as error:
        repository(str(shop / "src"))
    assert f"invoke init --workspace {shop}" in str(error.value)


def test_a_linked_worktree_can_be_a_workspace(shop: Path, inventory: Path, tmp_path: Path) -> None:
    """Its .git is a file; git itself says where its exclude file is."""
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments in (
        [*who, "commit", "-q", "--allow-empty", "-m", "first"],
        ["worktree", "add", "-q", str(tmp_path / "linked")],
    ):
        subprocess.run(["git", "-C", str(shop), *arguments], check=True, capture_output=True)
    steps = init(str(tmp_path / "linked"), str(inventory))
    assert str(shop / ".git" / "info" / "exclude") in [step.path for step in steps]


def test_a_merge_driver_is_offered_and_set_up_only_when_asked_for(
    shop: Path, inventory: Path
) -> None:
    """A person's own attributes and config stay; an older command line gives way to the new one."""
    attributes, config = shop / ".git" / "info" / "attributes", shop / ".git" / "config"
    attributes.write_text("*.png binary")
    before = config.read_text()
    offered = next(step for step in init(str(shop), str(inventory)) if step.did == "none")
    assert offered.note.endswith("invoke init --merge-driver")
    assert (attributes.read_text(), config.read_text()) == ("*.png binary", before)
    subprocess.run(
        ["git", "-C", str(shop), "config", "merge.rolecall.driver", "test -x /none"], check=True
    )
    steps = init(None, str(inventory), merge_driver=True)
    assert [(step.did, step.path) for step in steps if step.did == "changed"] == [
        ("changed", str(config)),
        ("changed", str(attributes)),
    ]
    queue = ".oodatcaa/work/SPRINT_QUEUE.json"
    assert attributes.read_text() == f"*.png binary\n/{queue} merge=rolecall\n"
    assert config.read_text().startswith(before)
    assert mergedriver.missing(mergedriver.configured(str(shop))) == []
    assert "merge driver" not in [step.path for step in init(None, str(inventory))]


def test_a_queue_outside_of_the_repository_gets_no_merge_driver(shop: Path, tmp_path: Path) -> None:
    """It says so and does nothing: another repository, or none, has that file."""
    outside = write_inventory(tmp_path / "other", queue="file:../queue.json")
    step = init(str(shop), str(outside), merge_driver=True)[-1]
    assert (step.did, step.path) == ("none", str(tmp_path / "queue.json"))
    assert "outside" in step.note
    assert "rolecall" not in (shop / ".git" / "config").read_text()
    assert not (shop / ".git" / "info" / "attributes").exists()


def test_a_broken_inventory_is_said_before_anything_is_made(shop: Path, inventory: Path) -> None:
    """An error leaves nothing half done."""
    (inventory / "group_vars" / "all.yml").write_text("roles: {builder: {wip_limt: 3}}\n")
    with pytest.raises(RolecallError, match="wip_limt"):
        init(str(shop), str(inventory))
    assert not (shop / ".oodatcaa").exists()


def test_without_a_workspace_anywhere_it_asks_for_one(inventory: Path) -> None:
    """A usage error, with what to type."""
    with pytest.raises(here.UsageError, match="which repository"):
        init(None, str(inventory))


@pytest.mark.parametrize("role", ["planner", "builder", "tester", "refiner", "integrator"])
def test_a_default_prompt_renders_without_a_template_engine(role: str) -> None:
    """Plain values only (jinja2 would cost each attempt its import), and it names the result."""
    text = (Path(prompt.TEMPLATES) / f"{role}.md.j2").read_text()
    assert not prompt.PLAIN.sub("", text).count("{{")
    values = {
        "task": {"id": "T1"},
        "task_json": "{}",
        "role": role,
        "attempt": 1,
        "workspace": "/w",
        "worktree": "/t",
        "result_file": "/r/result.json",
        "task_file": "/r/task.json",
        "branch": "agent/T1",
        "main": "trunk",
        "background": "",
    }
    rendered = prompt.render(text, values)
    assert "/r/result.json" in rendered
    assert "ROLECALL_RESULT_FILE" in rendered
