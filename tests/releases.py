"""A host in the test's HOME to which releases of this checkout were copied: small ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon.config import to_json
from daemon.fleet import bootstrap
from daemon.inventory import Inventory
from tests.fleet import Fleet, local
from tests.workspace import PATIENCE, ROOT

#: What a host does that was asked to deploy: the release's own code, in one process.
DEPLOY = """
import json, sys
from daemon.config import from_json
from daemon.fleet import switching
from daemon.fleet.connection import Local
asked = json.load(sys.stdin)
host = Local(asked["host"])
host.checkout = asked["checkout"]
tell = lambda line: print(line, file=sys.stderr, flush=True)
done = switching.deploy(host, from_json(asked["config"]), tell=tell, **asked["options"])
print(json.dumps(switching.as_json(done)))
"""
READY = 'self.notifier.send("READY=1", "STATUS=started")'
#: What a release is made to do wrong: (file, text, what takes its place).
EXITS = ("daemon/worker.py", READY, 'raise SystemExit("made to exit")')
DIES = ("daemon/worker.py", READY, f"{READY}; signal.alarm(1)")
NEVER_READY = ("daemon/worker.py", READY, "signal.pause()")
Edit = tuple[str, str, str]


class Copied(Fleet):
    """A host with copied releases, supervised by pid files. It has no release to begin with."""

    def __init__(self, home: Path) -> None:
        super().__init__(local, "pidfile")
        self.home = home
        self.place = Path(bootstrap.place_of(str(home), "agent"))

    def release(self, *edits: Edit, version: str = "") -> str:
        """Put a release there that differs from this checkout by these edits; its id."""
        releases = self.place / bootstrap.RELEASES
        aside = releases / ".being-made"
        for folder in ("daemon", "templates"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, aside / folder, ignore=ignored)
        (aside / "VERSION").write_text(version)
        for path, old, new in edits:
            text = (aside / path).read_text()
            assert old in text
            (aside / path).write_text(text.replace(old, new))
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(aside)}\n"
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        ]
        (aside / bootstrap.MANIFEST).write_text("".join(lines))
        name = bootstrap.identify("".join(lines).encode())
        if (releases / name).exists():
            shutil.rmtree(aside)
        else:
            aside.rename(releases / name)
        return name

    def command(self, release: str) -> tuple[list[str], str]:
        """What deploys the release, and the folder to run it in; it reads ``asked`` on stdin."""
        return [sys.executable, "-c", DEPLOY], str(self.place / bootstrap.RELEASES / release)

    def asked(self, **options: Any) -> str:
        inventory = Inventory.load(str(self.home / self.inventory))
        config = inventory.config(inventory.local_host())
        return json.dumps(
            {
                "host": "web1",
                "checkout": str(self.place / bootstrap.CURRENT),
                "config": to_json(config),
                "options": {"settle": 0.5, **options},
            }
        )

    def deploy(self, release: str, **options: Any) -> dict[str, Any]:
        """Deploy it here; what became of it."""
        command, cwd = self.command(release)
        done = subprocess.run(
            command,
            cwd=cwd,
            input=self.asked(**options),
            capture_output=True,
            text=True,
            timeout=PATIENCE * 4,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def links(self) -> tuple[str | None, str | None]:
        """The releases that ``current`` and ``previous`` name."""
        place = str(self.place)
        return bootstrap.linked(place, "current"), bootstrap.linked(place, "previous")

    def workers(self) -> dict[str, str]:
        """The release that each worker runs, by role; "" where it does not run."""
        found = {}
        for role, row in self.rows().items():
            running = row["state"] == "running"
            found[role] = os.path.basename(os.readlink(f"/proc/{row['pid']}/cwd")) * running
        return found
