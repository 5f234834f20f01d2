"""Stage 0 as ssh starts it: through pipes, in a home of the test's own."""

from __future__ import annotations

import ast
import os
import pwd
import shutil
import signal
import stat
import subprocess
import zlib
from pathlib import Path

import pytest

from daemon.errors import RolecallError
from daemon.fleet import bootstrap, runtime
from daemon.fleet.arrival import verify
from tests.farside import ONHOST, Far, frame, messages, pythons, release, request, upload
from tests.workspace import wait_for

PYTHONS = pythons()


@pytest.fixture
def far(tmp_path: Path) -> Far:
    (tmp_path / "there").mkdir()
    return Far(tmp_path / "there")


def python(version: str) -> str:
    if version not in PYTHONS:
        pytest.skip(f"Python {version} is not on this machine")
    return PYTHONS[version]


# --- facts ----------------------------------------------------------------------------------------


def test_it_says_what_the_host_is_and_changes_nothing(far: Far) -> None:
    """A greeting is answered by the facts; an operator that hangs up then has changed nothing."""
    (said,) = far.say(frame({"protocol": 1, "prefix": "agent"}))
    facts = said["facts"]
    assert facts["home"] == str(far.home)
    assert facts["user"] == pwd.getpwuid(os.getuid()).pw_name
    assert facts["kind"] == bootstrap.kind()
    assert facts["python"][0] == 3
    assert os.path.samefile(facts["executable"], far.python)
    assert (facts["current"], facts["previous"], facts["releases"]) == (None, None, [])
    assert facts["free"] > 0
    assert far.files() == []


def test_it_goes_when_nobody_greets(far: Far) -> None:
    """A connection that ends at once leaves nothing, not even an error."""
    assert far.say(b"") == []


def test_what_is_no_greeting_is_refused(far: Far) -> None:
    """In the words of an error, not in a traceback."""
    assert far.error(b"GET / HTTP/1.1\r\n")[1] == "what came is no message of Rolecall's"


def test_a_banner_without_an_end_hides_nothing(far: Far) -> None:
    """What a login shell prints may leave its line open: ours begin on one of their own."""
    with far.start("sh", "-c", 'printf "Welcome"; exec "$0" "$@"') as running:
        out, _ = running.communicate(frame({"protocol": 1, "prefix": "agent"}))
    assert out.startswith(b"Welcome\n")
    assert [*messages(out)[0]] == ["facts"]


@pytest.mark.parametrize("prefix", ["../agent", "a/b", "", "."])
def test_a_prefix_is_no_path(far: Far, prefix: str) -> None:
    """It names a folder, and never one elsewhere."""
    assert "no unit_prefix" in far.error(frame({"protocol": 1, "prefix": prefix}))[1]


def test_every_python_3_can_read_it() -> None:
    """So that one that is too old can say so. Broken once by ``match``: this failed."""
    ast.parse(zlib.decompress(runtime.stage_zero()).decode(), feature_version=(3, 6))


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9", "3.10"])
def test_a_python_that_is_too_old_says_so(far: Far, version: str) -> None:
    """With its version, its path, and the variable that names another one."""
    far.python = python(version)
    where, what, hint = far.error(frame({"protocol": 1, "prefix": "agent"}))
    assert what.startswith(f"Python {version}.")
    assert os.path.samefile(where, far.python)
    assert "ansible_python_interpreter" in hint


# --- a release comes, and is used -----------------------------------------------------------------


def test_a_release_comes_and_serves(far: Far) -> None:
    """It is unpacked, compared, put in place; then its own code answers, from where it truly is."""
    made = release()
    said = far.last(upload(made, options={"roles": ["builder"]}))["result"]
    folder = far.releases / made.id
    assert said["file"] == str(folder / "daemon" / "__init__.py")
    assert said["cwd"] == str(folder)
    assert (said["verb"], said["options"], said["current"]) == (
        "install",
        {"roles": ["builder"]},
        None,
    )
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST", "daemon"]
    assert (folder / "MANIFEST").read_bytes() == made.manifest
    facts = far.say(frame({"protocol": 1, "prefix": "agent"}))[0]["facts"]
    assert facts["releases"] == [made.id]


def test_what_comes_is_closed_to_others(far: Far) -> None:
    """The prefix's folder is 0700; inside, files are 0644 and folders 0755, whatever the umask."""
    made = release()
    far.last(upload(made), "sh", "-c", 'umask 0007; exec "$0" "$@"')
    assert stat.S_IMODE(far.place.stat().st_mode) == 0o700
    for path in (far.releases / made.id).rglob("*"):
        expected = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_release_that_is_there_is_used_without_an_upload(far: Far) -> None:
    """And nothing of it changes."""
    made = release()
    far.last(upload(made))
    before = {path: path.stat().st_mtime_ns for path in far.place.rglob("*")}
    assert far.last(request(made))["result"]["cwd"] == str(far.releases / made.id)
    assert {path: path.stat().st_mtime_ns for path in far.place.rglob("*")} == before


def test_nothing_but_the_upload_is_read(far: Far) -> None:
    """What stands behind it is the verb's own: how ``logs`` learns that its reader has gone."""
    assert far.last(upload(release()) + b"and more")["result"]["rest"] == "and more"


def test_an_upload_may_come_in_drops(far: Far) -> None:
    """However the network cuts it up; and while nothing comes, a sign of life goes back."""
    made = release()
    sent = upload(made)
    with far.start() as running:
        assert running.stdin
        assert running.stdout
        for at in range(len(sent) - 40):
            running.stdin.write(sent[at : at + 1])
            running.stdin.flush()
        lines = iter(running.stdout.readline, b"")
        assert next(line for line in lines if b"alive" in line)
        running.stdin.write(sent[-40:])
        running.stdin.close()
        assert [*messages(b"".join(lines))[-1]] == ["result"]


def test_the_current_release_is_meant_where_none_is_named(far: Far) -> None:
    """``agents.status`` is answered by what runs there."""
    made = release()
    far.last(upload(made))
    (far.place / "current").symlink_to(f"releases/{made.id}")
    said = far.last(request(None, "status"))["result"]
    assert (said["cwd"], said["current"]) == (str(far.releases / made.id), made.id)


def test_a_host_that_has_none_says_so(far: Far) -> None:
    """Not as an error: nothing is installed there."""
    assert far.last(request(None, "status")) == {"result": None, "missing": True}
    assert far.files() == []


def test_an_uninstall_takes_what_an_install_left_behind(far: Far) -> None:
    """A release that came, and that no link ever named: its own code takes it away."""
    made = release()
    far.last(upload(made))
    assert far.last(request(None, "status")) == {"result": None, "missing": True}
    assert far.last(request(None, "uninstall"))["result"]["cwd"] == str(far.releases / made.id)


def test_an_uninstall_takes_what_an_upload_left_behind(far: Far) -> None:
    """There is no release that could do it."""
    (far.releases / ".new-0123456789abcdef" / "daemon").mkdir(parents=True)
    (far.releases / ".new-file").write_text("")
    assert far.last(request(None, "uninstall")) == {"result": None, "missing": True}
    assert far.files() == [".local", ".local/share"]  # which were there before any lock was


def test_an_uninstall_does_not_mind_an_edit(far: Far) -> None:
    """Whole or not: what goes need not be compared."""
    made = release()
    far.last(upload(made))
    (far.place / "current").symlink_to(f"releases/{made.id}")
    (far.releases / made.id / "daemon" / "__init__.py").write_text("# by hand\n")
    assert "result" in far.last(request(None, "uninstall"))


def test_current_names_nothing_but_a_release(far: Far) -> None:
    """A link to elsewhere is nobody's release."""
    far.place.mkdir(parents=True)
    (far.place / "current").symlink_to("/etc")
    assert far.last(request(None, "status")) == {"result": None, "missing": True}


def test_what_only_looks_leaves_nothing(far: Far) -> None:
    """With ``keep`` false the release serves from a folder of its own, which then goes."""
    made = release()
    said = far.last(upload(made, keep=False))["result"]
    assert os.path.basename(said["cwd"]).startswith(bootstrap.FOR_NOW)
    assert not os.path.exists(said["cwd"])
    assert far.files() == []


def test_what_only_looked_and_was_killed_is_removed_by_the_next(far: Far, tmp_path: Path) -> None:
    """But nothing that a live process has, or that somebody else calls so."""
    far.environ["TMPDIR"] = str(tmp_path / "there")
    sent = upload(release(), keep=False)
    with far.start() as running, far.start() as living:
        for each, rest in ((running, 100), (living, 90)):
            assert each.stdin
            each.stdin.write(sent[:-rest])
            each.stdin.flush()
        wait_for(lambda: len([*far.home.glob(f"{bootstrap.FOR_NOW}*/MANIFEST")]) == 2)
        running.kill()
        running.wait()
        (far.home / f"{bootstrap.FOR_NOW}file").write_text("")
        assert "result" in far.last(upload(release("another"), keep=False))
        assert len([*far.home.glob(f"{bootstrap.FOR_NOW}*/MANIFEST")]) == 1
        living.communicate(sent[-90:])
    assert far.files() == [f"{bootstrap.FOR_NOW}file"]


def test_a_check_does_not_even_compile(far: Far) -> None:
    """An install does."""
    made = release()
    far.last(upload(made))
    compiled = far.releases / made.id / "daemon" / "__pycache__"
    shutil.rmtree(compiled)
    far.last(request(made, options={"check": True}))
    assert not compiled.exists()
    far.last(request(made))
    assert compiled.exists()


def test_a_damaged_release_asks_for_another_copy(far: Far) -> None:
    """Before it is used for a change; the second copy takes its place."""
    made = release()
    far.last(upload(made))
    path = far.releases / made.id / "daemon" / "__init__.py"
    path.write_text("# by hand\n")
    error = far.last(request(made))["error"]
    assert error["code"] == "damaged"
    assert error["problems"][0][:2] == [
        str(far.releases / made.id),
        "damaged: daemon/__init__.py has changed",
    ]
    assert "result" in far.last(upload(made))
    assert path.read_text() == "# \n"
    assert [path.name for path in far.releases.iterdir()] == [made.id]
    assert far.last(request(release("another")))["error"]["code"] == "damaged"  # not there at all


def test_a_release_of_another_time_says_what_to_type(far: Far) -> None:
    """Where operator and host do not understand each other, a deploy is what helps."""
    made = release(onhost=ONHOST.replace("{protocol}", "2"))
    assert far.error(upload(made))[2] == "invoke deploy"


def test_a_python_that_lacks_a_module_says_so(far: Far) -> None:
    """As Debian's python3-minimal does: it is no fault of the release."""
    made = release(onhost="raise ModuleNotFoundError(name='ctypes')")
    where, what, hint = far.error(upload(made))
    assert what == "this Python has no module ctypes, as every whole one has"
    assert os.path.samefile(where, far.python)
    assert hint.startswith("apt-get install python3 ")


def test_a_release_that_does_not_run_says_so(far: Far) -> None:
    """Without a traceback."""
    made = release(onhost="import daemon.nothing")
    assert far.error(upload(made))[1:] == (
        "the release does not run: No module named 'daemon.nothing'",
        "invoke install",
    )


def test_nothing_of_the_home_is_imported(far: Far) -> None:
    """A json.py that lies in somebody's home is theirs, even where -I was not given."""
    (far.home / "json.py").write_text("raise SystemExit('the wrong json')\n")
    (far.home / "zero.py").write_bytes(zlib.decompress(runtime.stage_zero()))
    done = subprocess.run(
        [far.python, "-c", "exec(open('zero.py').read())"],
        cwd=far.home,
        env=far.environ,
        input=frame({"protocol": 1, "prefix": "agent"}),
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""
    assert [*messages(done.stdout)[0]] == ["facts"]


@pytest.mark.parametrize("version", [v for v in PYTHONS if int(v.partition(".")[2]) > 10])
def test_any_python_since_3_11_will_do(far: Far, version: str) -> None:
    """Whatever the operator's own is."""
    far.python = python(version)
    made = release()
    assert far.last(upload(made))["result"]["cwd"] == str(far.releases / made.id)
    assert "result" in far.last(request(made))


def test_an_operator_that_goes_in_the_middle_leaves_nothing(far: Far) -> None:
    """The half of an upload goes, with the folders that were made for it."""
    made = release()
    sent = upload(made)
    assert far.error(sent[:-100])[1].startswith("the archive was cut short")
    assert far.files() == []


def test_what_was_killed_is_removed_by_the_next_one(far: Far) -> None:
    """A KILL leaves a folder that no one takes for a release, and only until the next upload."""
    made = release()
    sent = upload(made)
    with far.start() as running:
        assert running.stdin
        running.stdin.write(sent[:-100])
        running.stdin.flush()
        wait_for(lambda: list(far.releases.glob(".new-*")))
        running.kill()
    assert far.say(frame({"protocol": 1, "prefix": "agent"}))[0]["facts"]["releases"] == []
    assert "result" in far.last(upload(release("another")))
    assert [path.name for path in far.releases.iterdir()] == [release("another").id]


def test_killed_at_any_moment_every_release_is_whole(far: Far) -> None:
    """What stands under a release's name is all there, and what ran before runs on."""
    before, made = release("before"), release(**{f"daemon/m{n}.py": "x = 1\n" for n in range(40)})
    far.last(upload(before))
    ended = set()
    for step in range(12):
        with far.start() as running:
            try:
                running.communicate(upload(made), timeout=0.04 + step * 0.03)
            except subprocess.TimeoutExpired:
                running.kill()
                running.communicate()
            ended.add(running.returncode)
        for each in far.releases.iterdir():
            if not each.name.startswith("."):
                verify(str(each))
        if made.id in os.listdir(far.releases):
            shutil.rmtree(far.releases / made.id)
    assert -signal.SIGKILL in ended
    assert "result" in far.last(upload(made))
    assert set(os.listdir(far.releases)) == {before.id, made.id}


def test_operators_who_come_at_once_do_no_harm(far: Far) -> None:
    """Some with the same release, some with another: each is answered, each release is whole."""
    several = [release("a"), release("b"), release("a"), release("a"), release("b")]
    running = [far.start() for _ in several]
    for each, made in zip(running, several, strict=True):
        assert each.stdin
        each.stdin.write(upload(made))
        each.stdin.close()
        each.stdin = None
    for each, made in zip(running, several, strict=True):
        out, err = each.communicate()
        assert err == b""
        assert messages(out)[-1]["result"]["cwd"] == str(far.releases / made.id)
    assert set(os.listdir(far.releases)) == {made.id for made in several}
    for made in several:
        verify(str(far.releases / made.id))


def test_an_upload_that_stalls_is_given_up() -> None:
    """With the host's lock in hand nobody waits for ever for an operator whose network is cut."""
    read, write = os.pipe()
    beats: list[int] = []
    coming = bootstrap.Incoming(read, 10, lambda: beats.append(1), 0.2)
    os.write(write, b"some")
    assert coming.read() == b"some"
    with pytest.raises(RolecallError, match=r"nothing more has come for 0\.2 s"):
        coming.read()
    assert len(beats) > 1
    os.write(write, b" more,")
    assert coming.read() == b" more,"
    assert coming.read() == b""  # at once, though the line is open
    os.close(read)
    os.close(write)
