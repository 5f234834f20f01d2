"""Output is kept with secrets masked, and never too much of it."""

import os
from pathlib import Path

import pytest

from daemon.capture import Capture, Mask, mask_files, masked_text
from daemon.errors import RolecallError


def masked(secrets: list[str], *pieces: bytes) -> bytes:
    mask = Mask(secrets)
    return b"".join(mask.feed(piece) for piece in pieces) + mask.flush()


@pytest.mark.parametrize("cut", range(len("a hunter22 b") + 1))
def test_a_secret_is_masked_wherever_a_read_cuts_it(cut: int) -> None:
    """A secret that arrives in two reads is masked like one that arrives in one."""
    text = b"a hunter22 b"
    assert masked(["hunter22"], text[:cut], text[cut:]) == b"a *** b"


def test_a_secret_is_masked_byte_by_byte() -> None:
    """Single bytes are enough pieces too, and nothing else is changed."""
    text = b"hhunter22hunter2 hunter22hunter22"
    pieces = [text[i : i + 1] for i in range(len(text))]
    assert masked(["hunter22"], *pieces) == b"h***hunter2 ******"


def test_overlapping_secrets_leave_no_part_of_either() -> None:
    """Where one secret begins inside another, no tail of the second is shown."""
    both = b"(xxabcdefgh)"
    for cut in range(len(both)):
        found = masked(["xxabc", "abcdefgh"], both[:cut], both[cut:])
        assert found in {b"(***)", b"(******)"}
    assert masked(["abcdef", "abcdefgh"], b"abcdef", b"gh.") == b"***."
    assert masked(["abcdef", "abcdefgh"], b"abcdef", b"gX.") == b"***gX."


def test_a_secret_inside_a_json_string_is_masked() -> None:
    """Agents print JSON: a secret of several lines is known there as well."""
    assert masked(['one"\ntwo'], b'{"key": "one\\"\\ntwo"}') == b'{"key": "***"}'


def test_what_is_no_secret_is_not_held_back_for_long() -> None:
    """Only a tail that may become a secret waits for more."""
    mask = Mask(["hunter22"])
    assert mask.feed(b"all of this") == b"all of this"
    assert mask.feed(b"his hu") == b"his "
    assert mask.feed(b"t") == b"hut"


def test_an_empty_secret_masks_nothing() -> None:
    """A variable without a value is no secret."""
    assert masked([""], b"text") == b"text"


def test_output_beyond_the_limit_is_not_kept(tmp_path: Path) -> None:
    """The file says so once and does not grow further, also when it is opened again."""
    path = tmp_path / "out"
    for _ in range(2):
        capture = Capture(str(path), (), limit=10)
        capture.feed(b"12345")
        capture.feed(b"6789012345")
        capture.feed(b"more")
        assert capture.close() == ""
    text = path.read_bytes()
    assert text.startswith(b"1234567890\n[rolecall: output beyond 10 bytes is not kept]\n")
    assert len(text) < 200
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_symlink_or_a_fifo_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """Nothing is written through a link, and nobody waits for a reader of a fifo."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(RolecallError, match="output cannot be kept"):
            Capture(str(tmp_path / name), ())
    assert not (tmp_path / "elsewhere").exists()


def test_files_that_a_program_wrote_itself_are_masked(tmp_path: Path) -> None:
    """Those of the folder, of any size; what is no regular file is let be, what is to be kept, too.

    Broken once by reading them piece by piece without a tail: a secret on the border stayed.
    """
    border = b"x" * ((1 << 20) - 3) + b"hunter22"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"hunter22")
    run = tmp_path / "run"
    run.mkdir()
    for name, data in (("traj.json", border), ("task.json", b"hunter22"), ("plain", b"x")):
        (run / name).write_bytes(data)
    (run / "link").symlink_to(elsewhere)
    (run / "folder").mkdir()
    mask_files(str(run), ["hunter22"], ("task.json",))
    assert (run / "traj.json").read_bytes() == border[:-8] + b"***"
    assert (run / "task.json").read_bytes() == elsewhere.read_bytes() == b"hunter22"
    names = ["folder", "link", "plain", "task.json", "traj.json"]
    assert sorted(os.listdir(run)) == names


def test_text_is_masked_whatever_it_holds() -> None:
    """Half a character, too, as JSON may name it."""
    assert masked_text("\ud800 hunter22 é", ["hunter22"]) == "\ud800 *** é"
