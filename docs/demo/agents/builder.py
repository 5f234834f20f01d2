"""A builder: edits the code as its task asks, and commits that on the task's branch.

It has the answers in patches/, and one of them is wrong: the gate will tell.
"""

import json
import os
import subprocess
from pathlib import Path

task = json.loads(Path(os.environ["ROLECALL_TASK_FILE"]).read_text())
patch = Path(__file__).parent / "patches" / f"{task['id']}.patch"
subprocess.run(["git", "apply", "--index", str(patch)], check=True)
subprocess.run(["git", "commit", "--quiet", f"--message={task['id']}: {task['title']}"], check=True)
