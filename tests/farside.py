"""Stage 0 at the far end of a pipe, in a home of a test's own; and small releases for it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daemon.fleet import runtime
from daemon.fleet.bootstrap import MARK
from daemon.fleet.runtime import Runtime
from daemon.fleet.ssh import BOOT
from tests.workspace import PATIENCE

ONHOST = """
import json, os, sys
PROTOCOL = {protocol}
def serve(request, facts):
    import daemon
    rest = b"".join(iter(lambda: os.read(0, 4096), b"")).decode()
    said = dict(file=daemon.__file__, cwd=os.getcwd(), verb=request["verb"], rest=rest,
                current=facts["current"], options=request.get("options"))
    print("\\x1erolecall " + json.dumps(dict(result=said)), flush=True)
"""


def release(note: str = "", onhost: str = ONHOST, **files: str) -> Runtime:
    """A release that only says what it was asked; ``note`` makes it another one."""
    made = {"daemon/__init__.py": f"# {note}\n", "daemon/fleet/__init__.py": ""}
    made["daemon/fleet/onhost.py"] = onhost.replace("{protocol}", "1")
    made |= files
    return runtime.pack({path: text.encode() for path, text in made.items()})


def frame(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document).encode()
    return b"%08x%b" % (len(text), text)


def request(wanted: Runtime | None, verb: str = "install", **more: Any) -> bytes:
    """Both frames: the greeting and the request, without an upload unless ``more`` has one."""
    named = wanted.id if wanted else None
    asked = {"release": named, "upload": 0, "verb": verb, "options": {}, "config": "{}", **more}
    return frame({"protocol": 1, "prefix": "agent"}) + frame(asked)


def upload(made: Runtime, archive: bytes | None = None, **more: Any) -> bytes:
    """The request that brings the release, or another archive in its name."""
    data = made.archive if archive is None else archive
    return request(made, upload=len(data), **more) + data


class Far:
    """A host: its home, and what its stage 0 says to what it is sent."""

    def __init__(self, home: Path, python: str = sys.executable, **environ: str) -> None:
        self.home, self.python = home, python
        self.environ = {**os.environ, "HOME": str(home), **environ}
        self.place = home / ".local" / "share" / "rolecall" / "agent"
        self.releases = self.place / "releases"

    def start(self, *before: str, **keys: Any) -> subprocess.Popen[bytes]:
        zero = runtime.stage_zero()
        boot = BOOT.format(size=len(zero))
        running = subprocess.Popen(
            [*before, self.python, "-I", "-X", "utf8", "-c", boot],
            env=self.environ,
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **keys,
        )
        assert running.stdin
        running.stdin.write(zero)
        running.stdin.flush()
        return running

    def say(self, sent: bytes, *before: str, **keys: Any) -> list[dict[str, Any]]:
        """What it answers, message by message; nothing else may be said on stderr."""
        with self.start(*before, **keys) as running:
            out, err = running.communicate(sent, timeout=PATIENCE)
        assert not err, err.decode()
        return messages(out)

    def last(self, sent: bytes, *before: str, **keys: Any) -> dict[str, Any]:
        return self.say(sent, *before, **keys)[-1]

    def error(self, sent: bytes, *before: str, **keys: Any) -> tuple[str, str, str]:
        """Where, what and hint of the one error that it ends with."""
        (where, what, hint) = self.last(sent, *before, **keys)["error"]["problems"][0]
        return where, what, hint

    def files(self) -> list[str]:
        """All that is in its home, but what Python compiles."""
        found = [str(path.relative_to(self.home)) for path in self.home.rglob("*")]
        return sorted(path for path in found if "__pycache__" not in path)


def messages(out: bytes) -> list[dict[str, Any]]:
    lines = [line for line in out.split(b"\n") if line.startswith(MARK)]
    return [json.loads(line.removeprefix(MARK)) for line in lines]


@functools.cache
def pythons() -> dict[str, str]:
    """The Pythons of this machine that really run, those that pyenv has among them: by version."""
    found: dict[str, str] = {}
    for minor in range(6, 20):
        name = f"python3.{minor}"
        paths = [f"/usr/bin/{name}", shutil.which(name) or name]
        if "shims" in paths[1]:
            versions = Path(paths[1]).parent.parent / "versions"
            paths[1:] = [str(path) for path in versions.glob(f"3.{minor}.*/bin/{name}")]
        for path in filter(os.path.exists, paths):
            done = subprocess.run([path, "-c", ""], capture_output=True, check=False)
            if done.returncode == 0:
                found.setdefault(f"3.{minor}", path)
    return found
