"""``make demo AGENT=claude``: a story, from its plan to main, by the agent CLI of your own account.

All that it makes is one temporary folder, which it names; no process is left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sprint import CHECKOUT, HERE, Demo, run

from daemon import agents
from daemon.agents.preset import Preset
from daemon.errors import RolecallError
from daemon.fleet.finding import OK, Finding, report
from daemon.fleet.here import one_of
from daemon.fleet.output import escape, table

RUNS = "about five runs"  # a plan, two builds, two tests
TRIED = {"trial", "cli", "state", "credentials", "answer"}
GATES = "gates: [[python, -m, pytest, --quiet]]"
#: What an account may need to be reached, beside what the preset passes by itself.
PASSED = (
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "CLAUDE_CONFIG_DIR", "CODEX_HOME"),
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME"),
)


class Story(Demo):
    """One story in the hands of one agent CLI."""

    patience, stopping = 1200.0, 30.0

    def __init__(self, folder: Path, preset: Preset, model: str) -> None:
        super().__init__(folder)
        self.preset, self.model = preset, model

    def lay_out(self) -> None:
        """The shop, and an inventory in which the agent plans, builds, tests and refines."""
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(HERE / "shop", self.shop, ignore=ignored)
        for name, text in (
            ("hosts.yml", "all: {hosts: {localhost: {ansible_connection: local}}}\n"),
            ("group_vars/all.yml", self.inventory()),
        ):
            path = self.folder / "inventory" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.found()

    def inventory(self) -> str:
        """What the roles run; the integrator has no agent: Rolecall merges what passes."""
        passed = [name for name in PASSED if name in os.environ]
        keys = [
            f"agent: {self.preset.name}",
            *([f"model: {json.dumps(self.model)}"] if self.model else []),
            *([f"pass_env: [{', '.join(passed)}]"] if passed else []),
            *("timeout: 600", "stop_budget: 0", "kill_grace: 5", "max_attempts: 2"),
        ]
        roles = {"planner": keys, "integrator": ["worktree: true", GATES]}
        roles |= {name: [*keys, GATES] for name in ("builder", "tester", "refiner")}
        lines = ["workspace: shop", "supervisor: pidfile", "max_adaptations: 2", "roles:"]
        for name, own in roles.items():
            lines += [f"  {name}:", *(f"    {line}" for line in own)]
        return "\n".join([*lines, ""])

    def examine(self) -> None:
        """Try the agent as its attempts will run it; leave where it does not answer."""
        print("Is it ready? (a few tokens)\n$ invoke doctor --in-unit --role builder", flush=True)
        done = subprocess.run(
            ["invoke", "doctor", "--in-unit", "--role", "builder", "--json"],
            cwd=CHECKOUT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            found = json.loads(done.stdout)
        except ValueError:
            raise SystemExit(done.stderr.strip()) from None
        findings = [
            Finding(*(each[name] for name in Finding._fields))
            for each in found
            if each["check"] in TRIED
        ]
        print(report(findings, self.style) + "\n", flush=True)
        wrong = [each for each in findings if each.state == "fail"]
        wrong += [each for each in findings if each.check == "answer" and each.state != OK]
        if wrong:
            raise SystemExit(escape_lines(f"error: {wrong[0].what}\nhint:  {wrong[0].hint}"))

    def done(self) -> bool:
        """Whether every task has ended; leaves where one waits for a person."""
        for task in self.tasks():
            if task["status"] == "needs_manual":
                self.fail(f"{task['id']} needs a person: {task.get('last_error')}")
        return super().done()

    def spent(self) -> list[dict[str, Any]]:
        """What each attempt left as its result, in order."""
        found = []
        for path in (self.shop / ".agent-runs").glob("*/*/result.json"):
            try:
                said = json.loads(path.read_text())
                found.append({**said, "task": path.parts[-3], "at": path.stat().st_mtime})
            except (OSError, ValueError, TypeError):
                continue
        return sorted(found, key=lambda each: float(each["at"]))

    def show_spent(self) -> None:
        """Who worked on what, how long, for how much, as far as the CLI tells."""
        rows, tokens, dollars = [], 0.0, 0.0
        for each in self.spent():
            usage = each.get("usage") or {}
            if not usage:
                continue
            own = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
            cost = usage.get("cost_usd") or 0
            tokens, dollars = tokens + own, dollars + cost
            rows.append(
                [
                    *(each["task"], each.get("role", ""), each.get("outcome", "")),
                    f"{each['seconds']:.0f} s" if "seconds" in each else "",
                    *(f"{own:,.0f}", f"{cost:.4f}" if cost else ""),
                ]
            )
        if rows:
            print(table(["task", "role", "outcome", "time", "tokens", "USD"], rows, self.style))
            money = f", USD {dollars:.4f}" if dollars else ""
            print(f"In all: {tokens:,.0f} tokens{money}\n", flush=True)


def escape_lines(text: str) -> str:
    """The text with all that drives a terminal made visible, but for its line ends."""
    return "\n".join(map(escape, text.splitlines()))


def chosen(name: str) -> Preset:
    """The preset of an agent CLI that is installed; leaves with what to type where it is not."""
    try:
        preset = agents.find(one_of("agent", name, agents.NAMES))
    except RolecallError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    assert preset is not None  # noqa: S101  # one_of knows its name
    if shutil.which(preset.argv[0]) is None:
        sys.exit(f"error: {preset.argv[0]} is not on PATH\nhint:  {preset.install}")
    return preset


def main() -> None:
    """Say what it will cost, try the agent, follow the story, show what came of it."""
    name, model = (*sys.argv[1:], "", "")[:2]
    preset = chosen(name)
    story = Story(Path(tempfile.mkdtemp(prefix="rolecall-demo-")), preset, model)
    print(f"{story.preset.title} plans and builds one small story, in {story.folder}.")
    print(f"It works on your own account: {RUNS}, of some minutes each at the most. All of it")
    print(f"is stopped after {story.patience / 60:g} minutes, and by Ctrl-C at once.\n")
    try:
        story.lay_out()
        story.examine()
        story.type("invoke", "init")
    except BaseException:
        shutil.rmtree(story.folder)  # there is nothing in it to be looked at
        raise
    story.type("invoke", "queue.add", "--json", str(HERE / "story.json"))
    story.started = time.monotonic()
    try:
        with story.workers() as workers:
            story.follow(workers)
    finally:
        print()
        story.show_spent()
    seconds = time.monotonic() - story.started
    story.type("invoke", "queue.list")
    story.type("git", "log", "--oneline", "--graph", folder=story.shop)
    story.type("python", "-m", "pytest", "--quiet", folder=story.shop)
    print(f"{len(story.tasks())} tasks in {seconds:.0f} s; all of it is in {story.folder}")
    print("Look around:")
    print(f"  . {CHECKOUT}/.venv/bin/activate")
    print(f"  export ROLECALL_INVENTORY={story.folder}/inventory")
    print("  invoke queue.show SHOP-1")
    print(f"  ls {story.shop}/.agent-runs/*/*")
    print(f"  rm -r {story.folder}")
    print(f'For a repository of yours: {CHECKOUT}/README.md, "On your own repository"')


if __name__ == "__main__":
    run(main)
