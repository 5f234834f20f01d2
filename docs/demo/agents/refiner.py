"""A refiner: sees for itself how the tests fail, mends the cause, and sees that they pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = [sys.executable, "-m", "pytest", "--quiet"]

task = json.loads(Path(os.environ["ROLECALL_TASK_FILE"]).read_text())
if subprocess.run(TESTS, check=False).returncode == 0:
    result = {"outcome": "rejected", "note": f"the tests pass, but: {task.get('last_error')}"}
else:
    patch = Path(__file__).parent / "patches" / f"{task['id']}.refined.patch"
    subprocess.run(["git", "apply", "--index", str(patch)], check=True)
    subprocess.run(TESTS, check=True)
    subprocess.run(["git", "commit", "--quiet", f"--message={task['id']}: refined"], check=True)
    result = {"outcome": "success", "note": "mended what the tests found"}
Path(os.environ["ROLECALL_RESULT_FILE"]).write_text(json.dumps(result))
