"""Tasks that wait for themselves, over dependencies and over a story's children."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.lifecycle import ENDED, PLANNED, Entry, Tasks, waits_for


def cycles(tasks: Tasks) -> dict[str, list[str]]:
    """Each task that waits for itself, with the shortest way back to it: [A, B, A]."""
    needs: dict[str, list[str]] = {}
    for entry in tasks.entries:
        if entry.task.get("status") not in ENDED:
            waiting_for = (name for name, _ in waits_for(entry.task, tasks))
            needs[entry.task["id"]] = [name for name in waiting_for if name in tasks.by_id]
        if entry.task.get("status") == PLANNED:  # it is satisfied when its children have ended
            needs[entry.task["id"]] += [
                str(child["id"])
                for child in children(entry, tasks)
                if child.get("status") not in ENDED and child.get("id") in tasks.by_id
            ]
    # Peel off whatever can still come to its end; only cycles, and what waits for them, remain.
    waiting: dict[str, list[str]] = {}
    count = dict.fromkeys(needs, 0)
    for task_id, needed in needs.items():
        for name in needed:
            if name in needs:
                waiting.setdefault(name, []).append(task_id)
                count[task_id] += 1
    free = [task_id for task_id, left in count.items() if left == 0]
    while free:
        for task_id in waiting.get(free.pop(), []):
            count[task_id] -= 1
            if count[task_id] == 0:
                free.append(task_id)
    stuck = {task_id for task_id, left in count.items() if left > 0}
    return {start: way for start in needs if start in stuck and (way := _way(start, needs, stuck))}


def children(entry: Entry, tasks: Tasks) -> list[dict[str, Any]]:
    """The tasks that name it as their parent, and its subtasks."""
    own = entry.task["id"]
    return [
        each.task
        for each in tasks.every
        if own in (each.task.get("parent"), each.task.get("parent_task"), each.parent)
        and each is not entry
    ]


def _way(start: str, needs: Mapping[str, list[str]], stuck: set[str]) -> list[str]:
    """The shortest way from a task over its dependencies back to it; empty where there is none."""
    came_from: dict[str, str] = {}
    edge = [start]
    while edge:
        reached = []
        for task_id in edge:
            for name in needs[task_id]:
                if name == start:
                    way = [start, task_id] if task_id != start else [start]
                    while way[-1] != start:
                        way.append(came_from[way[-1]])
                    return [*reversed(way[1:]), start] if len(way) > 1 else [start, start]
                if name in stuck and name not in came_from:
                    came_from[name] = task_id
                    reached.append(name)
        edge = reached
    return []
