"""A stand-in for Claude Code: a shell script that prints what the real one prints."""

from __future__ import annotations

import json
from pathlib import Path

VERSION = "2.1.197"


def said(result: str = "ready", **more: object) -> str:
    """The last line of its output."""
    usage = {"input_tokens": 1000, "output_tokens": 50}
    event = {"type": "result", "subtype": "success", "is_error": False, "result": result}
    event |= {"session_id": "s-1", "total_cost_usd": 0.004, "usage": usage}
    return json.dumps({**event, **more})


def claude(folder: Path, script: str = "", last: str = "", *, version: str = VERSION) -> Path:
    """A program ``claude`` in the folder that reads its prompt, runs the script, and says so."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "claude"
    program.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then echo "{version} (Claude Code)"; exit; fi
cat > /dev/null
{script}
cat << 'END'
{last or said()}
END
"""
    )
    program.chmod(0o755)
    return program
