"""A planner: one task for each wish of the story, each on top of the one before, and a test."""

import json
import os
from pathlib import Path
from typing import Any

story = json.loads(Path(os.environ["ROLECALL_TASK_FILE"]).read_text())
tasks: list[dict[str, Any]] = []
needed = story["builds_on"]
for number, wish in enumerate(story["wishes"], 1):
    task = {"id": f"{story['id']}-B{number}", "title": wish, "type": "Build"}
    tasks.append({**task, "priority": 2, "parent": story["id"], "dependencies": needed})
    needed = [task["id"]]
test = {"id": f"{story['id']}-T1", "title": f"Test: {story['title']}", "type": "Test"}
tasks.append({**test, "priority": 2, "parent": story["id"], "dependencies": needed})

result = {"outcome": "success", "note": f"{len(tasks)} tasks", "add_tasks": tasks}
Path(os.environ["ROLECALL_RESULT_FILE"]).write_text(json.dumps(result))
