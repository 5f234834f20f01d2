"""The ledger of what was spent: its lines, its sums, and what hands and deaths do to it."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from daemon.config import Price
from daemon.errors import RolecallError
from daemon.queue import durable, spending
from daemon.queue.account import NOTHING, Account, Amount

AT = "2026-11-25T10:00:00.000Z"


def line(what: str, task: str = "T", token: int = 1, role: str = "builder", **more: Any) -> Any:
    return {"what": what, "at": AT, "task": task, "role": role, "token": token, **more}


def charged(tokens: float, cost: float | None = None, **more: Any) -> Any:
    used: dict[str, float] = {"input_tokens": tokens, "output_tokens": 0}
    used |= {} if cost is None else {"cost_usd": cost}
    return line("charged", usage=used, outcome="success", **more)


def reserved(tokens: float, cost: float = 0.0, **more: Any) -> Any:
    return line("reserved", tokens=tokens, cost_usd=cost, **more)


def estimated(**more: Any) -> Any:
    return line("charged", usage={}, estimated=True, **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / spending.NAME


def put(path: Path, *lines: Any) -> None:
    for each in lines:
        spending.append(str(path), each, sync=False)


def summed(path: Path) -> Account:
    account = Account(str(path))
    account.look()
    return account


# --- lines ---------------------------------------------------------------------------------------


def test_the_cost_is_told_or_reckoned() -> None:
    """What the agent tells wins; else a price makes dollars of tokens; else nobody knows."""
    price = Price(2, 10)
    both = {"input_tokens": 1_000_000, "output_tokens": 100_000}
    assert spending.usage(both, price) == {**both, "cost_usd": 3.0}
    assert spending.usage({**both, "cost_usd": 7.0}, price) == {**both, "cost_usd": 7.0}
    assert spending.usage(both, None) == both
    assert spending.usage({"output_tokens": 100}, price) == {
        "output_tokens": 100,
        "cost_usd": 0.001,
    }
    assert spending.usage({"cost_usd": 1}, price) == {"cost_usd": 1}
    assert spending.usage(None, price) is None
    assert spending.usage({}, price) == {"input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0}


def test_numbers_of_no_agent_are_not_known() -> None:
    """Endless, negative, enormous ones, booleans: as if they had not been told."""
    for odd in (float("inf"), float("nan"), -1, 1e16, 10**400, True):
        assert spending.usage({"cost_usd": odd, "output_tokens": 5}, None) == {"output_tokens": 5}
        assert spending.usage({"cost_usd": odd}, None) is None


ODD = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"what": "charged"}',
    b"{" * 5000,
    b"[" * 5000,
    b"\xff\xfe",
    b'{"what": "spent", "at": "%s", "task": "T", "role": "b", "token": 1}' % AT.encode(),
    json.dumps(line("charged", token=True)).encode(),
    json.dumps({**line("charged"), "token": "1"}).encode(),
    json.dumps({**line("charged"), "task": ["T"]}).encode(),
    json.dumps(line("charged", usage=3)).encode(),
    json.dumps({**line("charged"), "at": "yesterday"}).encode(),
    json.dumps({**line("charged"), "at": 17}).encode(),
    b'{"what": "charged", "at": "2026-11-25T10:00:00Z", "task": "T", "role": "b", "token": 1e999}',
]


@pytest.mark.parametrize("data", ODD, ids=range(len(ODD)))
def test_a_line_of_somebody_else_is_none(path: Path, data: bytes) -> None:
    """It is passed over and counted; those around it stand."""
    put(path, charged(1))
    with path.open("ab") as file:
        file.write(data + b"\n")
    put(path, charged(2, token=2))
    account = summed(path)
    assert account.charged.of("builder") == Amount(3, 0)
    assert account.reader.skipped == bool(data)


def test_days_are_utc_in_whatever_zone_a_person_writes() -> None:
    """Half an hour past midnight in Berlin is the day before."""
    written = json.dumps({**charged(1), "at": "2026-11-26T00:30:00+01:00"}).encode()
    found = spending.parse(written)
    assert found is not None
    assert found.day == "2026-11-25"


# --- the file ------------------------------------------------------------------------------------


def test_half_a_line_stays_one_by_itself(path: Path) -> None:
    """Of a writer that died: it is not there for a reader, and spoils no line behind it."""
    put(path, charged(1))
    with path.open("a") as file:
        file.write('{"what": "char')
    account = summed(path)
    assert account.charged.of(None) == Amount(1, 0)
    put(path, charged(2, token=2))
    account.look()
    assert (account.charged.of(None), account.reader.skipped) == (Amount(3, 0), 1)


def test_a_whole_line_that_lacks_only_its_end_counts_once(path: Path) -> None:
    """As soon as the next one is behind it."""
    put(path, charged(1))
    with path.open("a") as file:
        file.write(json.dumps(charged(4, token=2)))
    account = summed(path)
    put(path, charged(2, token=3))
    account.look()
    assert account.charged.of(None) == Amount(7, 0) == summed(path).charged.of(None)


def test_a_full_disk_leaves_no_half_of_a_line(path: Path, mocker: MockerFixture) -> None:
    """It is an error that names the disk; what was there stays."""
    put(path, charged(1))
    before = path.read_bytes()
    real = os.write
    mocker.patch("os.write", lambda fd, data: real(fd, data[:10]))
    with pytest.raises(durable.DiskError, match="No space left"):
        put(path, charged(2, token=2))
    mocker.stopall()
    assert path.read_bytes() == before
    mocker.patch("os.write", side_effect=OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(durable.DiskError, match="Read-only"):
        put(path, charged(2, token=2))


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_is_an_error(path: Path, kind: str) -> None:
    """Neither followed nor waited for, reading and writing."""
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.parent / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(RolecallError, match="spending ledger"):
        put(path, charged(1))
    with pytest.raises(RolecallError, match="spending ledger"):
        summed(path)
    assert not (path.parent / "elsewhere").exists()


def test_a_look_reads_what_is_new(path: Path, mocker: MockerFixture) -> None:
    """And nothing where nothing is.

    Broken once by seeking to the start: every line was taken again.
    """
    put(path, *(charged(1, token=i) for i in range(1, 50)))
    account = summed(path)
    parsed = mocker.spy(spending, "parse")
    account.look()
    assert parsed.call_count == 0
    put(path, charged(1, token=50))
    account.look()
    assert parsed.call_count == 1
    assert account.charged.of(None) == Amount(50, 0)


@pytest.mark.parametrize("how", ["replaced", "shortened", "rewritten", "removed"])
def test_a_file_that_was_edited_is_read_anew(path: Path, how: str) -> None:
    """By an editor that renames, that truncates, that writes over it; or by rm."""
    put(path, charged(5), charged(6, token=2))
    account = summed(path)
    lines = path.read_text().splitlines(keepends=True)
    now = {"replaced": lines[:1], "shortened": lines[1:], "rewritten": [*lines[::-1], lines[0]]}
    if how in {"replaced", "removed"}:
        path.unlink()
    if how != "removed":
        path.write_text("".join(now[how]))
    account.look()
    expected = {"replaced": 5, "shortened": 6, "rewritten": 11, "removed": 0}
    assert account.charged.of(None) == Amount(expected[how], 0)


def test_a_line_without_an_end_is_not_kept_in_memory(path: Path) -> None:
    """A megabyte of it is passed over piece by piece."""
    put(path, charged(1))
    with path.open("a") as file:
        file.write("x" * 1_000_000 + "\n")
    put(path, charged(2, token=2))
    assert summed(path).charged.of(None) == Amount(3, 0)


# --- sums ----------------------------------------------------------------------------------------


def test_a_charge_counts_once(path: Path) -> None:
    """However often its line stands there.

    Broken once by adding each charged line.
    """
    put(path, reserved(9), charged(5, 0.5), charged(5, 0.5), reserved(9), estimated())
    account = summed(path)
    assert account.charged.of("builder") == Amount(5, 0.5)
    assert (account.open, account.estimated.of(None)) == ({}, NOTHING)


def test_a_task_that_was_added_again_has_its_tokens_again(path: Path) -> None:
    """Its attempts are others, claimed at another time: they count.

    Broken once by telling attempts apart by task and token alone.
    """
    put(
        path,
        charged(5, claimed="monday"),
        charged(6, claimed="friday"),
        charged(6, claimed="friday"),
    )
    assert summed(path).charged.of("builder") == Amount(11, 0)


def test_what_nobody_told_is_what_was_reserved(path: Path) -> None:
    """Marked as an estimate; of tokens and of dollars each by itself."""
    put(path, reserved(9, 0.9), estimated(), reserved(9, 0.9, token=2), charged(4, token=2))
    account = summed(path)
    assert account.charged.of("builder") == Amount(13, 1.8)
    assert account.estimated.of("builder") == Amount(9, 1.8)
    assert account.charged.of(None, task="T") == account.charged.of(None, day="2026-11-25")


def test_what_is_known_takes_the_place_of_an_estimate(path: Path) -> None:
    """A late attempt that tells what it spent, after it was settled for."""
    put(path, reserved(9, 0.9), estimated(), charged(4, 0.1), estimated())
    account = summed(path)
    assert account.charged.of("builder") == Amount(4, pytest.approx(0.1))  # type: ignore[arg-type]
    assert account.estimated.of("builder") == Amount(0, 0)


def test_the_costliest_of_the_latest_charges(path: Path) -> None:
    """Of the last twenty that were known and something; of tokens and dollars each its own."""
    put(path, charged(1000, 9.0, token=1))
    put(path, *(charged(i, 1 / i, token=i) for i in range(2, 22)))
    put(path, charged(0, 0.0, token=30), reserved(5000, 50, token=31), estimated(token=31))
    account = summed(path)
    assert account.costliest("builder") == Amount(21, 0.5)
    assert account.costliest("tester") == NOTHING


def test_reading_in_pieces_sums_up_the_same(path: Path) -> None:
    """Whatever the order of lines, and wherever the looks fall; against a plain model."""
    chance = random.Random(4)  # noqa: S311  # a test's choices
    for _ in range(60):
        path.unlink(missing_ok=True)
        pieces = Account(str(path))
        known, guess, held = dict[Any, float](), dict[Any, float](), dict[Any, float]()
        for _ in range(40):
            who, amount = (chance.choice("AB"), chance.randint(1, 6)), chance.randint(0, 9)
            kind = chance.choice((reserved, charged, estimated))
            if kind is reserved:
                put(path, reserved(amount, task=who[0], token=who[1]))
                if who not in guess:
                    held[who] = amount
            elif kind is charged:
                put(path, charged(amount, 0, task=who[0], token=who[1]))
                known.setdefault(who, amount)
            else:
                put(path, estimated(task=who[0], token=who[1]))
                guess.setdefault(who, held.get(who, 0))
            if chance.random() < 0.3:
                pieces.look()
        pieces.look()
        total = sum(({**guess, **known}).values())
        assert pieces.charged.of(None).tokens == total == summed(path).charged.of(None).tokens
        left = {who: amount for who, amount in held.items() if who not in {**guess, **known}}
        assert {who[:2]: each.amount.tokens for who, each in pieces.open.items()} == left
