"""Tasks that wait for themselves, over dependencies and over a story's children."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.index import Tasks, status_of
from daemon.lifecycle import ENDED, PLANNED, children, waits_for

LONGEST = 8  # tasks of a ring that are named


def cycles(tasks: Tasks) -> dict[str, list[str]]:
    """Each task that waits for itself, with a way back to it: [A, B, A]."""
    needs: dict[str, list[str]] = {}
    families = children(tasks, {entry.task["id"] for entry in tasks.in_status(PLANNED)})
    for entry in tasks.entries:
        if status_of(entry.task) not in ENDED:
            waiting_for = (name for name, _ in waits_for(entry.task, tasks))
            needs[entry.task["id"]] = [name for name in waiting_for if name in tasks.by_id]
        if status_of(entry.task) == PLANNED:  # it is satisfied when its children have ended
            needs[entry.task["id"]] += [
                str(child.task["id"])
                for child in families[entry.task["id"]]
                if status_of(child.task) not in ENDED and child.task.get("id") in tasks.by_id
            ]
    stuck = _stuck(needs, _stuck(_reversed(needs), set(needs)))
    found: dict[str, list[str]] = {}
    for start in needs:
        if start in stuck and start not in found:
            ring = _way(start, needs, stuck)
            found |= {name: _shown(ring, place) for place, name in enumerate(ring)}
    return found


def _reversed(needs: Mapping[str, list[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in needs}
    for task_id, needed in needs.items():
        for name in needed:
            if name in found:
                found[name].append(task_id)
    return found


def _stuck(waiting: Mapping[str, list[str]], among: set[str]) -> set[str]:
    """What is left when all is peeled off, again and again, that nothing left points to."""
    count = dict.fromkeys(among, 0)
    for name in among:
        for each in waiting[name]:
            if each in count:
                count[each] += 1
    free = [name for name, left in count.items() if left == 0]
    while free:
        for each in waiting[free.pop()]:
            if each in count:
                count[each] -= 1
                if count[each] == 0:
                    free.append(each)
    return {name for name, left in count.items() if left > 0}


def _shown(ring: list[str], place: int) -> list[str]:
    """The ring from a place in it round to there again; the middle of a long one is left out."""
    name = ring[place]
    following = [ring[(place + step) % len(ring)] for step in range(1, min(len(ring), LONGEST))]
    return [name, *following, *["..."] * (len(ring) > LONGEST), name]


def _way(start: str, needs: Mapping[str, list[str]], stuck: set[str]) -> list[str]:
    """The shortest ring of tasks that starts there; empty where none comes back."""
    came_from: dict[str, str] = {}
    edge = [start]
    while edge:
        reached = []
        for task_id in edge:
            for name in needs[task_id]:
                if name == start:
                    ring = [task_id]
                    while ring[-1] != start:
                        ring.append(came_from[ring[-1]])
                    return ring[::-1]
                if name in stuck and name not in came_from:
                    came_from[name] = task_id
                    reached.append(name)
        edge = reached
    return []
