"""A host in the test's HOME to which releases of this checkout were copied: small ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemon.config import to_json
from daemon.fleet import place
from daemon.inventory import Inventory
from tests.fleet import Fleet, local
from tests.workspace import PATIENCE, ROOT

#: What a host does that was asked for a verb: the release's own code, in one process.
PERFORM = """
import json, sys
from daemon.config import from_json
from daemon.fleet import onhost
from daemon.fleet.connection import Local
asked = json.load(sys.stdin)
tell = lambda line: print(line, file=sys.stderr, flush=True)
host = Local("web1", asked["checkout"])
config = from_json(asked["config"])
print(json.dumps(onhost.perform(host, config, asked["verb"], asked["options"], tell)))
"""
READY = 'self.notifier.send("READY=1", "STATUS=started")'
#: What a worker can be made to do where it would say that it is ready.
EXITS = 'raise SystemExit("made to exit")'
DIES = f"{READY}; signal.alarm(1)"
NEVER_READY = "signal.pause()"
IGNORES = f"{READY}; signal.signal(signal.SIGUSR1, signal.SIG_IGN)"


class Copied(Fleet):
    """A host with copied releases, supervised by pid files. It has no release to begin with."""

    def __init__(self, home: Path) -> None:
        super().__init__(local, "pidfile")
        self.home = home
        self.place = Path(place.place_of(str(home), "agent"))

    def release(self, version: str = "1", **made_to: str) -> str:
        """Put a release there whose workers of these roles are made to do that; its id."""
        releases = self.place / place.RELEASES
        aside = releases / ".being-made"
        for folder in ("daemon", "templates"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, aside / folder, ignore=ignored)
        (aside / "VERSION").write_text(version)
        worker, indent = aside / "daemon" / "worker.py", "\n        "
        text = worker.read_text()
        assert text.count(READY) == 1
        lines = [f"if self.roles == [{each!r}]: {code}" for each, code in made_to.items()]
        others = f"if self.roles[0] not in {[*made_to]}: {READY}"
        worker.write_text(text.replace(READY, indent.join([*lines, others])))
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(aside)}\n"
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        ]
        (aside / place.MANIFEST).write_text("".join(lines))
        name = hashlib.sha256("".join(lines).encode()).hexdigest()[: place.DIGITS]
        if (releases / name).exists():
            shutil.rmtree(aside)
        else:
            aside.rename(releases / name)
        return name

    def command(self, release: str) -> tuple[list[str], str]:
        """What deploys the release, and the folder to run it in; it reads ``asked`` on stdin.

        It writes no bytecode, as stage 0 has it.
        """
        return [sys.executable, "-B", "-c", PERFORM], str(self.place / place.RELEASES / release)

    def asked(self, release: str, verb: str = "deploy", **options: Any) -> str:
        inventory = Inventory.load(str(self.home / self.inventory))
        config = inventory.config(inventory.local_host())
        return json.dumps(
            {
                "verb": verb,
                "checkout": str(self.place / place.CURRENT),
                "config": to_json(config),
                "options": {"release": release, "sent": False, "settle": 0.5, **options},
            }
        )

    def begin(self, release: str, **options: Any) -> subprocess.Popen[str]:
        """Deploy it here, and wait until the first worker is to hand over."""
        command, cwd = self.command(release)
        began = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert began.stdin
        assert began.stderr
        began.stdin.write(self.asked(release, **options))
        began.stdin.close()
        began.stdin = None  # or communicate() would flush it
        line = began.stderr.readline()
        assert line == f"hands over to release {release}\n", line + began.stderr.read()
        return began

    def perform(
        self, release: str, verb: str, *, under: Sequence[str] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Do a verb by its code, started by ``under``."""
        command, cwd = self.command(release)
        return subprocess.run(
            [*under, *command],
            cwd=cwd,
            input=self.asked(release, verb, **options),
            capture_output=True,
            text=True,
            timeout=PATIENCE * 4,
            check=False,
        )

    def deploy(self, release: str, **options: Any) -> dict[str, Any]:
        """Deploy it here; what became of it."""
        done = self.perform(release, "deploy", **options)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def links(self) -> tuple[str | None, str | None]:
        """The releases that ``current`` and ``previous`` name."""
        return place.linked(str(self.place), "current"), place.linked(str(self.place), "previous")

    def workers(self) -> dict[str, str]:
        """The release that each worker runs, by role; "" where it does not run."""
        found = {}
        for role, row in self.rows().items():
            found[role] = ""
            with contextlib.suppress(FileNotFoundError):  # none, or it has just handed over
                found[role] = os.path.basename(os.readlink(f"/proc/{row['pid']}/cwd"))
        return found
