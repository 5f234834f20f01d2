"""What reaches an agent's environment, and the file its secrets stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon import environment
from daemon.errors import ConfigError


def env_file(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "builder.env"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_only_named_variables_pass() -> None:
    """PATH and its like, LC_*, and nothing else; TERM is dumb."""
    given = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "TERM": "xterm",
        "AWS_SECRET": "x",
        "NOTIFY_SOCKET": "y",
    }
    assert environment.base(given) == {"PATH": "/bin", "LC_ALL": "C", "TERM": "dumb"}


def test_reads_keys_and_values(tmp_path: Path) -> None:
    """Blank lines, comments, ``export`` and quotes are understood."""
    path = env_file(tmp_path, "# c\n\nA=1\nexport B='two words'\nC=a=b\n")
    assert environment.read_env_file(path) == {"A": "1", "B": "two words", "C": "a=b"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o601, 0o620])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """Any group or other permission bit is a configuration error that says what to type."""
    path = env_file(tmp_path, "A=1\n", mode)
    with pytest.raises(ConfigError) as caught:
        environment.read_env_file(path)
    assert caught.value.exit_code == 78
    assert caught.value.problems[0].hint == f"chmod 600 {path}"


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """The line's number stands in the error, its text, which may be a secret, does not."""
    path = env_file(tmp_path, "A=1\nhunter2\n")
    with pytest.raises(ConfigError) as caught:
        environment.read_env_file(path)
    assert caught.value.problems[0].where == f"{path}:2"
    assert "hunter2" not in str(caught.value)


def test_secrets_are_masked_longest_first() -> None:
    """A secret inside a longer one must not leave the rest behind; short values are no secrets."""
    assert environment.secrets({"A": "abcdef", "B": "abcdefgh"}, {"C": "1"}) == (
        "abcdefgh",
        "abcdef",
    )
