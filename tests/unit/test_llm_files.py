"""What the model may read and write, and that it reaches nothing else."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.llm import files as module
from daemon.llm.files import Files, Refused

OUTSIDE = "kept outside"
HERE, EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A working folder, and something beside it that must be neither read nor changed."""
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text(OUTSIDE)
    return folder


@pytest.fixture
def files(root: Path) -> Iterator[Files]:
    found = Files(str(root))
    yield found
    found.close()


def refused(call: object, *given: object) -> str:
    with pytest.raises(Refused) as caught:
        call(*given)  # type: ignore[operator]
    return str(caught.value)


def test_a_file_is_written_read_and_edited(files: Files, root: Path) -> None:
    """With the folders that it needs; an edit keeps every other byte, and the mode."""
    assert files.write("a/b/c.txt", "eins\nzwei\n") == "wrote a/b/c.txt: 2 lines, a new file"
    (root / "a/b/c.txt").chmod(0o750)
    assert files.read("a/b/c.txt", 1, None, 1000) == "eins\nzwei\n"
    assert files.read(f"{root}/a/b/c.txt", 2, 2, 1000) == "[lines 2-2 of 2]\nzwei\n"
    assert files.edit("a/b/c.txt", "zwei", "zwölf") == "edited a/b/c.txt at line 2"
    assert (root / "a/b/c.txt").read_bytes() == "eins\nzwölf\n".encode()
    assert stat.S_IMODE((root / "a/b/c.txt").stat().st_mode) == 0o750
    assert os.listdir(root / "a/b") == ["c.txt"], "what was written aside is gone"


def test_an_edit_is_of_one_place_only(files: Files, root: Path) -> None:
    """Text that is not there, or there twice, is refused, and nothing changes."""
    (root / "f").write_text("a\nb\na\n")
    assert "does not hold" in refused(files.edit, "f", "x", "y")
    assert "2 times" in refused(files.edit, "f", "a", "y")
    assert "old is empty" in refused(files.edit, "f", "", "y")
    assert "the same" in refused(files.edit, "f", "b", "b")
    assert "no such file" in refused(files.edit, "g", "b", "c")
    assert (root / "f").read_text() == "a\nb\na\n"


def test_line_ends_of_windows_and_strange_bytes_are_kept(files: Files, root: Path) -> None:
    """The model says a line feed, whatever the file holds; what is no UTF-8 stays as it was."""
    (root / "f").write_bytes(b"one\r\ntwo\r\n\xff\r\n")
    files.edit("f", "one\ntwo", "1\n2")
    assert (root / "f").read_bytes() == b"1\r\n2\r\n\xff\r\n"
    assert files.read("f", 3, None, 100) == "[lines 3-3 of 3]\n\N{REPLACEMENT CHARACTER}\r\n"


def test_an_edited_file_leaves_other_names_of_it_alone(files: Files, root: Path) -> None:
    """A hard link may lead into a cache of the user's: a new file takes the place of this one."""
    os.link(root.parent / "outside/secret.txt", root / "linked")
    files.edit("linked", "kept", "changed")
    assert (root / "linked").read_text() == "changed outside"
    assert (root.parent / "outside/secret.txt").read_text() == OUTSIDE


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../outside/secret.txt", "'..' is not taken"),
        ("a/../../outside/secret.txt", "'..' is not taken"),
        ("/etc/passwd", "outside the working folder"),
        ("/", "outside the working folder"),
        ("", "names no file"),
        (".", "names no file"),
        ("a\0b", "NUL"),
        ("\ud800", "no character"),
        (".git", "what git keeps"),
        (".git/config", "what git keeps"),
        ("sub/.GIT/hooks/post-commit", "what git keeps"),
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(files: Files, path: str, why: str) -> None:
    """For reading, writing and editing alike, in words for the model."""
    assert why in refused(files.read, path, 1, None, 100)
    assert why in refused(files.write, path, "x")
    assert why in refused(files.edit, path, "x", "y")


def test_a_neighbour_whose_name_only_begins_alike_is_outside(files: Files, root: Path) -> None:
    """An absolute path is compared by its components."""
    (root.parent / "workshop").mkdir()
    assert "outside" in refused(files.write, f"{root}shop/f", "x")


def test_links_are_not_followed(files: Files, root: Path) -> None:
    """Neither at the end of a path nor on the way, wherever they lead; listings name them."""
    (root / "file").symlink_to(root.parent / "outside/secret.txt")
    (root / "folder").symlink_to(root.parent / "outside")
    (root / "loop").symlink_to("loop")
    for path in ("file", "folder/secret.txt", "folder", "loop", "loop/x"):
        assert "symbolic link" in refused(files.read, path, 1, None, 100)
        assert "symbolic link" in refused(files.write, path, "x")
    assert files.list(".", 3, "*", 10) == "file@\nfolder@\nloop@"
    assert (root.parent / "outside/secret.txt").read_text() == OUTSIDE


def test_a_link_that_is_swapped_in_leads_nowhere(root: Path) -> None:
    """While somebody changes a folder into a link and back, nothing outside is read or written."""
    (root / "d").mkdir()
    (root / "d" / "secret.txt").write_text("inside")
    (root / "link").symlink_to(root.parent / "outside")
    d, link = (os.fsencode(root / name) for name in ("d", "link"))
    libc, over = ctypes.CDLL(None), threading.Event()

    def swap() -> None:
        while not over.is_set():
            assert libc.renameat2(HERE, d, HERE, link, EXCHANGE) == 0

    swapper = threading.Thread(target=swap)
    swapper.start()
    files, outcomes = Files(str(root)), set()
    try:
        for number in range(400):
            try:
                outcomes.add(files.read("d/secret.txt", 1, None, 100))
            except Refused as error:
                outcomes.add(str(error)[:10])
            try:
                files.write(f"d/new{number}", "x")
            except Refused:
                continue
    finally:
        over.set()
        swapper.join()
        files.close()
    assert OUTSIDE not in outcomes
    assert "inside" in outcomes
    assert len(outcomes) > 1, "it never met the link"
    assert os.listdir(root.parent / "outside") == ["secret.txt"]


def test_what_is_no_regular_file_is_not_opened(files: Files, root: Path) -> None:
    """A FIFO would block for ever, a device has effects; both are refused, and so is a folder."""
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    for path, why in (("fifo", "no regular file"), ("folder", "a folder")):
        assert why in refused(files.read, path, 1, None, 100)
        assert why in refused(files.write, path, "x")
        assert why in refused(files.edit, path, "x", "y")


def test_reading_is_bounded(files: Files, root: Path) -> None:
    """Many lines, a long line and a huge file are shown in part or not; binaries never are."""
    (root / "lines").write_text("".join(f"{n}\n" for n in range(1000)))
    assert files.read("lines", 5, None, 10) == "[lines 5-9 of 1000]\n4\n5\n6\n7\n8\n"
    assert files.read("lines", 2000, None, 10) == "[lines has 1000 lines: none of these]"
    (root / "long").write_text("x" * 5000)
    assert files.read("long", 1, None, 10).startswith("[lines 1-1 of 1, the first 10 bytes")
    with (root / "huge").open("wb") as file:
        file.truncate(module.LARGEST + 1)
    assert "larger than 16 MiB" in refused(files.read, "huge", 1, None, 10)
    (root / "binary").write_bytes(b"\x7fELF\0")
    assert "binary" in refused(files.read, "binary", 1, None, 10)
    assert "binary" in refused(files.edit, "binary", "ELF", "elf")
    (root / "empty").touch()
    assert files.read("empty", 1, None, 10) == "[empty is empty]"


def test_names_of_any_kind_are_listed_and_read(files: Files, root: Path) -> None:
    """Unicode as it is, other bytes escaped; .git is left out, and a long listing says so."""
    files.write("ordner/größe.txt", "ja")
    (root / ".git").mkdir()
    with open(os.fsencode(root) + b"/\xff", "w"):
        pass
    assert files.list(".", 3, "*", 10) == "ordner/\n\\xff\nordner/größe.txt"
    assert files.list(".", 1, "*", 10) == "ordner/\n\\xff"
    assert files.list("ordner", 3, "*.txt", 10) == "ordner/größe.txt"
    assert files.list(".", 3, "*.py", 10) == "[nothing]"
    assert files.list(".", 3, "*", 1).startswith("ordner/\n[more than 1")
    assert "a folder" not in refused(files.list, "nowhere", 3, "*", 10)


def test_a_write_that_fails_leaves_nothing(files: Files, root: Path) -> None:
    """Half of a character cannot be written: the old file stays, and no other one appears."""
    (root / "f").write_text("old")
    assert "half of a character" in refused(files.write, "f", "\ud800")
    assert (root / "f").read_text() == "old"
    assert os.listdir(root) == ["f"]
