"""What is copied to a host: complete, the same everywhere, and at home on any Python there."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from importlib import metadata
from pathlib import Path

import pytest

from daemon.errors import RolecallError
from daemon.fleet import bootstrap, runtime
from daemon.fleet.runtime import Runtime
from daemon.reading import read_config
from tests.farside import Far, pythons, release, upload
from tests.workspace import ROOT, Workspace, wait_for

#: What is imported only for a queue on PostgreSQL, and imports psycopg at once.
ON_POSTGRES = {
    f"daemon.queue.{name}"
    for name in ("listening", "migrating", "postgres", "session", "tables", "winning", "writes")
}
OPENED: dict[str, dict[str, bytes]] = {}
PROMPT = "{% if task.id %}Hello {{ task.title | upper }}{% endif %}\n"
NAMES_ID = """
from daemon.fleet import runtime
made = runtime.build()
import hashlib
print(made.id, hashlib.sha256(made.archive).hexdigest())
"""


@pytest.fixture(scope="module")
def base() -> Runtime:
    return runtime.build()


def files(made: Runtime) -> dict[str, bytes]:
    """What is in its archive."""
    if made.id not in OPENED:
        OPENED[made.id] = opened(made)
    return OPENED[made.id]


def opened(made: Runtime) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(made.archive)) as archive:
        members = ((each.name, archive.extractfile(each)) for each in archive)
        return {name: file.read() for name, file in members if file}


def unpack(made: Runtime, folder: Path, *, without: tuple[str, ...] = ("/",)) -> Path:
    """The release as a folder, with nothing compiled."""
    for name, data in files(made).items():
        if name.startswith(without):
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def bare(python: str, release: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python in the release that has no packages of its own, as in an empty environment."""
    keep = {key: os.environ[key] for key in os.environ if key.startswith("ROLECALL_TEST_")}
    return subprocess.run(
        [python, "-S", "-E", *arguments],
        cwd=release,
        env={"HOME": os.environ["HOME"], "PATH": os.defpath, **keep},
        capture_output=True,
        text=True,
        check=False,
    )


# --- the archive ----------------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes() -> None:
    """Whatever the time of day, the order they were found in, and the process."""
    given = {"daemon/a.py": b"a", "LICENSE": b"l", "daemon/b/c.py": b"c"}
    made = runtime.pack(given)
    other = runtime.pack(dict(reversed(given.items())))
    assert (other.id, other.manifest) == (made.id, made.manifest)
    assert runtime._archive(other) == runtime._archive(made) == made.archive
    said = [
        subprocess.run(
            [sys.executable, "-c", NAMES_ID],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]


def test_the_archive_says_nothing_of_who_made_it(base: Runtime) -> None:
    """No name, no time, no mode but the usual one; the manifest is in front."""
    with tarfile.open(fileobj=io.BytesIO(base.archive)) as archive:
        members = archive.getmembers()
    assert members[0].name == "MANIFEST"
    assert [each.name for each in members[1:]] == sorted(each.name for each in members[1:])
    told = {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode, m.type) for m in members}
    assert told == {(0, 0, "", "", 0, 0o644, tarfile.REGTYPE)}


def test_the_id_names_the_manifest(base: Runtime) -> None:
    """And any other content has another one."""
    assert base.id == hashlib.sha256(base.manifest).hexdigest()[:16]
    assert files(base)["MANIFEST"] == base.manifest
    assert runtime.pack({"a": b"1"}).id != runtime.pack({"a": b"2"}).id
    assert runtime.pack({"a": b"1"}).id != runtime.pack({"b": b"1"}).id


def test_sha256sum_reads_the_manifest(base: Runtime, tmp_path: Path) -> None:
    """A person can check a release by hand."""
    folder = unpack(base, tmp_path)
    command = ["sha256sum", "--check", "--strict", "--quiet", "MANIFEST"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(base.manifest.splitlines()) == len(files(base)) - 1


def test_it_is_made_once(base: Runtime) -> None:
    """However many hosts ask for it at once.

    Broken once by leaving the lock out: this failed.
    """
    runtime._build.cache_clear()
    made: list[Runtime] = []
    several = [threading.Thread(target=lambda: made.append(runtime.build())) for _ in range(8)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    assert len(made) == 8
    assert all(each is made[0] for each in made)
    assert made[0].archive is base.archive
    assert made[0] == base


# --- what is in it --------------------------------------------------------------------------------


def test_nothing_in_it_is_compiled(base: Runtime) -> None:
    """So it fits every machine; and nothing is there that a host has no use for."""
    assert base.kind == ""
    endings = {os.path.splitext(path)[1] for path in files(base) if "dist-info" not in path}
    assert endings == {".py", ".j2", ".sql", ""}
    assert [path for path in files(base) if "." not in path] == ["MANIFEST", "LICENSE"]
    folders = {path.partition("/")[0] for path in files(base)} - {"LICENSE", "MANIFEST"}
    ours = {"daemon", "templates"}
    theirs = {"_yaml", "inotify_simple.py", "jinja2", "markupsafe", "yaml"}
    assert {each for each in folders if not each.endswith(".dist-info")} == ours | theirs
    assert not [path for path in files(base) if "__pycache__" in path]


def test_each_package_comes_with_its_licence(base: Runtime) -> None:
    """As all of them ask; and with its METADATA, which says the version."""
    for name in runtime.PACKAGES:
        told = f"{name}-{metadata.version(name)}.dist-info/"
        found = [path.removeprefix(told) for path in files(base) if path.startswith(told)]
        assert "METADATA" in found
        assert any("LICENSE" in path for path in found), name
        assert not {"RECORD", "INSTALLER", "direct_url.json"} & set(found)


def test_it_has_all_that_our_code_opens_and_imports(base: Runtime) -> None:
    """Each module, each template, and each package that a module of ours names.

    Broken once by leaving inotify_simple out: this failed.
    """
    for top in ("daemon", "templates"):
        for path in (ROOT / top).rglob("*"):
            odd = path.name.startswith(".") or path.name.endswith("~")  # an editor's
            if path.is_file() and "__pycache__" not in path.parts and not odd:
                name = str(path.relative_to(ROOT))
                assert name in files(base), f"say in runtime.ours that hosts need {name}"
    tops = {path.partition("/")[0].removesuffix(".py") for path in files(base)}
    for path in (ROOT / "daemon").rglob("*.py"):
        if "llm" not in path.parts:
            missing = imported(path) - {"psycopg"} - tops - sys.stdlib_module_names - {"__future__"}
            assert missing == set(), f"{path}: say in runtime.PACKAGES what it imports"


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_a_checkout_s_odds_and_ends_stay_at_home(tmp_path: Path) -> None:
    """What editors, git and Python leave beside the sources."""
    for name in ("daemon/a.py", "daemon/a.py~", "daemon/.a.py.swp", "daemon/__pycache__/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "daemon/.#a.py").symlink_to("me@here.123")  # Emacs' lock: a link to nowhere
    (tmp_path / "daemon/.b.py").write_text("")
    (tmp_path / "daemon/c.py").symlink_to("nowhere")
    (tmp_path / "LICENSE").write_text("")
    assert [path for path, _ in runtime.ours(str(tmp_path))] == ["LICENSE", "daemon/a.py"]


# --- it runs --------------------------------------------------------------------------------------

NEW_ENOUGH = {v: path for v, path in pythons().items() if int(v.partition(".")[2]) >= 11}


@pytest.mark.parametrize("python", NEW_ENOUGH.values(), ids=NEW_ENOUGH)
def test_a_host_needs_no_package(base: Runtime, ws: Workspace, tmp_path: Path, python: str) -> None:
    """YAML is read, a template of Jinja2 rendered, a task done: by a Python that has nothing."""
    ws.write_queue({"id": "T1", "title": "you", "type": "Build", "status": "ready"})
    ws.write_config(builder={"script": "cat > got", "prompt": "p.md"})
    (ws.path / "p.md").write_text(PROMPT)
    folder = unpack(base, tmp_path / "release")
    done = bare(python, folder, "-m", "daemon", "--once", "--config", str(ws.config))
    assert done.returncode == 0, done.stderr
    assert ws.status() == "awaiting_test"
    assert ws.file("got") == "Hello YOU\n"


def test_every_module_of_ours_can_be_imported_there(base: Runtime, tmp_path: Path) -> None:
    """Those of the commands too: what is done on a host is done by them."""
    folder = unpack(base, tmp_path)
    inside = sorted(str(path.relative_to(folder)) for path in (folder / "daemon").rglob("*.py"))
    modules = [path.removesuffix(".py").replace("/", ".") for path in inside]
    wanted = [each for each in modules if "__" not in each and not each.startswith("daemon.llm.")]
    wanted = [each for each in wanted if each not in ON_POSTGRES]
    code = "import importlib, sys; [importlib.import_module(each) for each in sys.argv[1:]]"
    code += "; print(len(sys.argv), sys.modules['yaml'].__file__)"
    done = bare(
        sys.executable, folder, "-c", f"import sys; sys.path.insert(0, '.'); {code}", *wanted
    )
    assert done.stderr == ""
    assert done.stdout == f"{len(wanted) + 1} {folder}/yaml/__init__.py\n"


def test_a_worker_runs_through_the_link(base: Runtime, ws: Workspace, tmp_path: Path) -> None:
    """A unit starts it in ``current``; it and its attempts stand in the release that this was then.

    So they live on, whatever the link says later.
    """
    (tmp_path / "there").mkdir()
    far = Far(tmp_path / "there")
    far.say(upload(base))
    current = far.place / "current"
    current.symlink_to(f"releases/{base.id}")
    ws.write_queue({"id": "T1", "title": "you", "type": "Build", "status": "ready"})
    ws.write_config(builder={"script": "cat /proc/$PPID/environ > env; cat"})
    command = [sys.executable, "-m", "daemon", "--role", "builder", "--config", str(ws.config)]
    with subprocess.Popen(command, cwd=current, stderr=subprocess.DEVNULL) as worker:
        try:
            ws.wait_status("awaiting_test")
            true = str(far.releases / base.id)
            assert wait_for(lambda: os.readlink(f"/proc/{worker.pid}/cwd")) == true
            assert f"PYTHONPATH={true}" in ws.file("env").split("\0")
        finally:
            worker.terminate()


# --- the LLM loop ---------------------------------------------------------------------------------


def test_the_llm_loop_binds_it_to_a_kind(tmp_path: Path) -> None:
    """Its packages have compiled files, for this machine and this Python; with them it runs."""
    try:
        metadata.version("pydantic-ai-slim")
    except metadata.PackageNotFoundError:
        pytest.skip("pydantic-ai is missing: make llm")
    made = runtime.build("llm")
    assert made.kind == bootstrap.kind()
    told = {path.partition("-")[0].lower() for path in files(made) if path.endswith("/METADATA")}
    assert told == {each.replace("-", "_") for each in runtime.locked("llm")} - {"invoke"}
    folder = unpack(made, tmp_path, without=("anthropic/", "openai/"))  # thousands of files
    done = bare(sys.executable, folder, "-m", "daemon.llm", "--version")
    assert done.stdout == f"pydantic-ai {metadata.version('pydantic-ai-slim')}\n", done.stderr
    code = "import sys; sys.path.insert(0, '.'); import pydantic_core, jiter, regex, certifi"
    code += "; print(pydantic_core._pydantic_core.__file__, len(certifi.contents()) > 9999)"
    done = bare(sys.executable, folder, "-c", code)
    assert done.stdout.startswith(f"{folder}/pydantic_core/"), done.stderr
    assert done.stdout.endswith(" True\n")


def test_another_kind_of_host_is_told_how() -> None:
    """Which kind the packages are for, which the host is; what fits all fits it, too."""
    release().check_fits("web1", "linux-aarch64-musl-cp313")
    bound = release()._replace(kind="linux-x86_64-glibc-cp311", extras=("llm", "postgres"))
    bound.check_fits("web1", "linux-x86_64-glibc-cp311")
    with pytest.raises(RolecallError) as raised:
        bound.check_fits("web1", "linux-aarch64-glibc-cp311")
    problem = raised.value.problems[0]
    assert problem.where == "web1"
    assert "linux-x86_64-glibc-cp311" in problem.what
    assert "linux-aarch64-glibc-cp311" in problem.what
    assert problem.what.startswith("the packages of `agent: llm` and a queue on PostgreSQL are ")
    for way in ("ansible_python_interpreter", "another agent", "make setup postgres"):
        assert way in problem.hint


@pytest.mark.parametrize(
    ("run", "wanted"), [(None, True), (["tester"], True), (["builder"], False)]
)
def test_only_who_runs_the_llm_loop_gets_its_packages(
    tmp_path: Path, run: list[str] | None, *, wanted: bool
) -> None:
    """By the roles that the host runs, not by those that there are."""
    (tmp_path / "c.yml").write_text(
        f"workspace: {tmp_path}\nroles:\n"
        "  builder: {agent: command, command: [x]}\n"
        "  tester: {agent: llm, model: 'openai:some'}\n"
    )
    config = read_config(str(tmp_path / "c.yml"))
    config = config._replace(run=tuple(run or config.roles))
    assert runtime.extras(config) == ("llm",) * wanted
    shared = config._replace(queue="postgresql://h/d")
    assert runtime.extras(shared) == (*("llm",) * wanted, "postgres")


def test_psycopg_binds_it_to_a_kind(tmp_path: Path) -> None:
    """A Python that has no package imports it there, with its own libpq; the SQL is there, too."""
    made = runtime.build("postgres")
    assert made.kind == bootstrap.kind()
    folder = unpack(made, tmp_path)
    code = "import sys; sys.path.insert(0, '.'); import psycopg; from daemon.queue import migrating"
    code += "; print(psycopg.__file__, psycopg.pq.__impl__, migrating.newest())"
    done = bare(sys.executable, folder, "-c", code)
    newest = len([*(ROOT / "daemon" / "queue" / "sql").glob("[0-9]*.sql")])
    assert done.stdout == f"{folder}/psycopg/__init__.py binary {newest}\n", done.stderr
    assert newest


def test_another_operator_has_the_same_release(base: Runtime, tmp_path: Path) -> None:
    """From another environment, in another place, which has no compiled files and no extra.

    What the extra's packages would be needed for then says what to type.
    """
    for name in runtime.PACKAGES:
        found = metadata.distribution(name)
        for each in found.files or ():
            if ".." not in each.parts and each.suffix not in {".so", ".pyc"}:
                (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(found.locate_file(each)), tmp_path / each)
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from daemon.fleet import runtime\n"
        "print(runtime.build().id)\n"
        "for extra in runtime.EXTRAS:\n"
        "    try:\n        runtime.build(extra)\n"
        "    except runtime.RolecallError as e:\n        print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    identifier, *told = done.stdout.splitlines()
    assert identifier == base.id
    for extra, what, hint in zip(runtime.EXTRAS, told[::2], told[1::2], strict=True):
        assert what.startswith("error: the package ")
        assert hint == f"hint:  make {extra}"


# --- what is not to be had ------------------------------------------------------------------------


def test_a_package_that_is_not_installed_says_what_to_type() -> None:
    """The extra's by `make llm`, the others by `make setup`."""
    with pytest.raises(RolecallError, match="no-such-package") as raised:
        runtime.package("no-such-package", hint="make llm", compiled=True)
    assert raised.value.problems[0].hint == "make llm"


def installed(folder: Path, *lines: str) -> None:
    told = folder / "odd-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    if lines:
        (told / "RECORD").write_text("".join(f"{line},,\n" for line in lines))


def test_a_package_without_its_list_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a distribution's own packages may be: which files belong to it is nowhere said."""
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path)
    with pytest.raises(RolecallError, match="RECORD is missing"):
        runtime.package("odd")


def test_a_file_that_is_gone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never a release without it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, "odd.py")
    with pytest.raises(RolecallError, match="cannot be read") as raised:
        runtime.package("odd")
    assert raised.value.problems[0].where == str(tmp_path / "odd.py")


def test_what_of_a_package_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules and licences; compiled files and data only for a host of the same kind."""
    monkeypatch.syspath_prepend(str(tmp_path))
    told = "odd-1.0.dist-info/"
    always = ["odd/a.py", f"{told}METADATA", f"{told}licenses/COPYING", f"{told}LICENSE.txt"]
    bound = ["odd/b.so", "odd/data.json"]
    never = ["odd/tests/t.py", "odd/a.pyi", "odd/c.c", f"{told}RECORD", "../../bin/odd"]
    (tmp_path / "site" / "packages").mkdir(parents=True)
    site = tmp_path / "site" / "packages"
    monkeypatch.syspath_prepend(str(site))
    installed(site, *always, *bound, *never, "odd/__pycache__/a.cpython-311.pyc")
    for name in (*always, *bound, *never):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith(("METADATA", "RECORD")):
            (site / name).write_text("x")
    assert sorted(runtime.package("odd")) == sorted(always)
    assert sorted(runtime.package("odd", compiled=True)) == sorted(always + bound)
    shutil.rmtree(tmp_path / "bin")
