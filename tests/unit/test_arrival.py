"""What a host takes for a release, and what it refuses: archives as anybody might send them."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.fleet import arrival
from daemon.fleet.arrival import Damaged, verify
from daemon.fleet.runtime import Runtime, pack
from tests.farside import Far, release, request, upload

Member = tuple[tarfile.TarInfo, bytes]
Change = Callable[[list[Member]], None]


@pytest.fixture
def far(tmp_path: Path) -> Far:
    (tmp_path / "there").mkdir()
    return Far(tmp_path / "there")


def archive(members: list[Member]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as made:
        for member, data in members:
            made.addfile(member, io.BytesIO(data))
    return plain.getvalue()


def packed(plain: bytes) -> bytes:
    packing = zlib.compressobj(wbits=31)
    return packing.compress(plain) + packing.flush()


def members(made: Runtime) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(made.archive)) as opened:
        return [(each, (opened.extractfile(each) or io.BytesIO()).read()) for each in opened]


def file(name: str, data: bytes = b"x", **more: object) -> Member:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in more.items():
        setattr(member, key, value)
    return member, data


def lying(found: list[Member]) -> None:
    """A file that says it is larger than all that is taken."""
    found[2][0].size = 1 << 40


HOSTILE: dict[str, Change] = {
    "a path that leads out": lambda found: found.append(file("../evil")),
    "an absolute path": lambda found: found.append(file("/tmp/evil")),  # noqa: S108  # never made
    "a file that is not listed": lambda found: found.append(file("daemon/evil.py")),
    "a file twice": lambda found: found.append(found[1]),
    "a file in the place of a folder": lambda found: found.insert(1, file("daemon")),
    "a changed file": lambda found: found.__setitem__(1, file(found[1][0].name, b"evil")),
    "a link": lambda found: found.__setitem__(
        1, file(found[1][0].name, b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    ),
    "a hard link": lambda found: found.__setitem__(
        1, file(found[1][0].name, b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")
    ),
    "a device": lambda found: found.__setitem__(
        1, file(found[1][0].name, b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    ),
    "a pipe": lambda found: found.__setitem__(
        1, file(found[1][0].name, b"", type=tarfile.FIFOTYPE)
    ),
    "a folder": lambda found: found.insert(1, file("daemon", b"", type=tarfile.DIRTYPE)),
    "no manifest in front": lambda found: found.append(found.pop(0)),
    "another manifest": lambda found: found.__setitem__(0, members(release("another"))[0]),
    "a file too few": lambda found: found.__delitem__(1),
    "nothing at all": lambda found: found.clear(),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_an_archive_that_is_no_release_changes_nothing(far: Far, change: Change) -> None:
    """Only the regular files of the manifest that was asked for are ever written."""
    made = release()
    found = members(made)
    change(found)
    error = far.last(upload(made, packed(archive(found))))["error"]
    assert error["code"] == "damaged", error
    assert far.files() == []


def test_more_than_any_release_has_is_refused(far: Far) -> None:
    """By what the archive's own head says, before anything of it is written."""
    found = members(release())
    head = found[1][0]
    head.size = 1 << 40
    manifest = archive(found[:1])[: found[1][0].offset]
    plain = manifest + head.tobuf() + bytes(tarfile.RECORDSIZE)
    assert "or too much" in far.error(upload(release(), packed(plain)))[1]
    assert far.files() == []


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a//b", "./a", "a/..", "__pycache__/a.py", "a\\b", "a\x1bb", ""]
)
def test_a_manifest_names_no_strange_path(far: Far, name: str) -> None:
    """Its id may fit, and the archive may hold just that: it is refused all the same."""
    made = pack({"daemon/__init__.py": b"", name: b"x"})
    assert "no line of a manifest" in far.error(upload(made))[1]
    assert far.files() == []


@pytest.mark.parametrize(
    "text", ["", "x", "x\n", f"{'0' * 64}  a", f"{'0' * 64}  a\n{'0' * 64}  a\n", "\xff\n"]
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """Empty, cut short, in another form, with a file twice."""
    (tmp_path / "MANIFEST").write_bytes(text.encode("latin-1"))
    with pytest.raises(Damaged):
        arrival.listed(str(tmp_path))


@pytest.mark.parametrize("cut", [0, 1, 10, 200, -1])
def test_an_upload_that_is_cut_short_changes_nothing(far: Far, cut: int) -> None:
    """Wherever that is: its length was announced."""
    made = release()
    sent = request(made, upload=len(made.archive))
    assert "cut short" in far.error(sent + made.archive[:cut])[1]
    assert far.files() == []


@pytest.mark.parametrize("cut", [1, 10, 200, 400])
def test_an_archive_that_was_cut_short_changes_nothing(far: Far, cut: int) -> None:
    """Where its length was announced as it is."""
    made = release()
    assert "cut short" in far.error(upload(made, made.archive[:cut]))[1]
    assert far.files() == []


def test_a_byte_that_flipped_harms_nothing(far: Far) -> None:
    """It is noticed, unless it is in what stands behind the last file: then all files are right."""
    made = release("x" * 1000)
    refused = 0
    for at in range(20, len(made.archive), len(made.archive) // 15):
        data = bytearray(made.archive)
        data[at] ^= 0x10
        if "error" in far.last(upload(made, bytes(data))):
            assert far.files() == []
            refused += 1
        else:
            verify(str(far.releases / made.id))
            shutil.rmtree(far.home / ".local")
    assert refused > 10


def test_what_comes_behind_the_archive_is_no_fault(far: Far) -> None:
    """The last block of a tar is filled up; what was announced is read to its end."""
    made = release()
    assert (
        far.last(upload(made, made.archive + bytes(100_000)) + b"more")["result"]["rest"] == "more"
    )


# --- verify ---------------------------------------------------------------------------------------


@pytest.fixture
def here(far: Far) -> Path:
    """The folder of a release that has come."""
    made = release(**{"templates/a.j2": "text", "jinja2/b.py": "B = 1"})
    far.last(upload(made))
    return far.releases / made.id


def test_a_whole_release_is_whole(here: Path) -> None:
    """And what Python compiles beside it is no part of it."""
    verify(str(here))
    assert list(here.rglob("*.pyc"))
    (here / "__pycache__").mkdir()
    verify(str(here))


def link(here: Path) -> None:
    (here / "jinja2" / "b.py").unlink()
    (here / "jinja2" / "b.py").symlink_to(here / "templates" / "a.j2")


def moved(here: Path) -> None:
    (here / "jinja2").rename(here.parent / "elsewhere")
    (here / "jinja2").symlink_to(here.parent / "elsewhere")


def folder(here: Path) -> None:
    (here / "templates" / "a.j2").unlink()
    (here / "templates" / "a.j2").mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda here: (here / "jinja2/b.py").write_text("B = 2"), "jinja2/b.py has changed"),
    "missing": (lambda here: (here / "jinja2/b.py").unlink(), "jinja2/b.py is missing"),
    "extra": (lambda here: (here / "json.py").touch(), "json.py is too much"),
    "extra folder": (lambda here: (here / "json").mkdir(), "json is too much"),
    "sourceless": (lambda here: (here / "jinja2/c.pyc").touch(), "jinja2/c.pyc is too much"),
    "a link": (link, "jinja2/b.py has changed"),
    "a linked folder": (moved, "jinja2 is too much"),
    "a folder": (folder, "templates/a.j2 is missing"),
    "manifest": (
        lambda here: (here / "MANIFEST").write_bytes(release("other").manifest),
        "MANIFEST has changed",
    ),
    "no manifest": (lambda here: (here / "MANIFEST").unlink(), "its manifest cannot be read"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(here: Path, damage: Callable[[Path], object], said: str) -> None:
    """File by file, each way that a file can be another one."""
    damage(here)
    with pytest.raises(Damaged) as raised:
        verify(str(here))
    assert said in raised.value.problems[0].what


@pytest.mark.parametrize("damage", [each for each, _ in DAMAGE.values()], ids=DAMAGE)
def test_another_copy_mends_it(far: Far, here: Path, damage: Callable[[Path], object]) -> None:
    """Whatever the damage was; the folder stands under its name again, and nothing beside it."""
    damage(here)
    made = release(**{"templates/a.j2": "text", "jinja2/b.py": "B = 1"})
    assert "result" in far.last(upload(made))
    verify(str(here))
    assert {each.name for each in far.releases.iterdir()} - {"elsewhere"} == {made.id}


def test_many_files_are_not_all_named(here: Path) -> None:
    """An error is for a person."""
    for number in range(9):
        (here / f"x{number}").touch()
    with pytest.raises(Damaged, match=r"x0 is too much, x1 is .*, x2 is too much and 6 more"):
        verify(str(here))


# --- compiled -------------------------------------------------------------------------------------


def compiled(here: Path) -> dict[str, bytes]:
    return {str(path.relative_to(here)): path.read_bytes() for path in here.rglob("*.pyc")}


def test_it_comes_compiled(here: Path) -> None:
    """Units may not write there: what is not compiled then would be compiled at every start."""
    assert len(compiled(here)) == len(list(here.rglob("*.py")))
    for data in compiled(here).values():
        assert str(here).encode() in data  # where it is, not where it was compiled
        assert b".new-" not in data


def test_what_is_compiled_follows_its_source(far: Far, here: Path) -> None:
    """Lost, cut short or of another time, it is made again with the next look at the release."""
    before = compiled(here)
    paths = sorted(here.rglob("*.pyc"))
    paths[0].unlink()
    paths[1].write_bytes(b"")
    paths[2].write_bytes(paths[2].read_bytes()[:8] + bytes(8) + paths[2].read_bytes()[16:])
    verify(str(here))
    assert compiled(here) == before


def test_what_cannot_be_compiled_is_left(far: Far) -> None:
    """A package may bring a module that only another Python reads."""
    made = release(**{"old.py": "print 'a'"})
    assert "result" in far.last(upload(made))


# --- room -----------------------------------------------------------------------------------------


def test_a_file_that_may_not_be_written_is_a_clear_error(far: Far) -> None:
    """A limit on a file's size, as a full disk would: where, what, and nothing has changed."""
    before = release("before")
    far.last(upload(before))
    seen = far.files()
    made = release(large="x" * 100_000)
    limited = ("sh", "-c", 'ulimit -f 20; exec "$0" "$@"')
    where, what, hint = far.error(upload(made), *limited)
    assert where.startswith(str(far.releases))
    assert what == "File too large"
    assert "what was there is unchanged" in hint
    assert far.files() == seen
    assert hashlib.sha256(before.manifest).hexdigest()[:16] == before.id
    verify(str(far.releases / before.id))
