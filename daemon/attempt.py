"""One attempt, a process of its own: it owns its lease from start to settle.

Only a worker starts it (``launch``); its brief, one JSON object, comes on standard input. Its exit
status tells the worker how it ended: 0, or 1 for an error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import signal
import time
from typing import Any

from daemon import (
    agents,
    capture,
    environment,
    evidence,
    executor,
    lifecycle,
    process,
    prompt,
    values,
    verdict,
)
from daemon.agents import preset as presets
from daemon.brief import Brief, Stop, read_brief
from daemon.errors import (
    ConfigError,
    Interrupted,
    LeaseLost,
    QueueUnreachable,
    QueueUnreadable,
    RolecallError,
)
from daemon.launch import DEFERRED, marker
from daemon.log import Log
from daemon.model import Move, Outcome, Result
from daemon.queue import Queue
from daemon.queue.opening import open_queue
from daemon.wake import Signals, wait

RETRY = 1.0  # seconds between tries of a renewal or a settling write that failed
LOGS = ("stdout.log", "stderr.log")  # of the agent; secrets are masked as it prints
KILLED = (-signal.SIGKILL, -signal.SIGTERM)
RECLAIM = 60.0  # seconds that an attempt which has settled may spend on old worktrees
MARGIN = 0.2  # of the ttl: an attempt that could not renew ends its tree this early
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class Attempt:
    """The steps of one attempt, in the order of ``work``."""

    def __init__(self, brief: Brief, queue: Queue, log: Log, stop: Stop) -> None:
        self.brief, self.queue, self.log, self.stop = brief, queue, log, stop
        self.role, self.config, self.lease = brief.role, brief.config, brief.lease
        #: When the latest renewal that counts was sent: the queue wrote it then, or later.
        self.began = self.renewed = time.monotonic()
        self.deadline = self.began + self.role.timeout
        self.marker = marker(brief.run_dir)
        self.cwd = self.config.workspace
        self.changes: dict[str, Any] = {}
        self.secrets: tuple[str, ...] = ()
        self.preset = agents.find(brief.role.agent)
        self.kept: tuple[Result | None] | None = None
        self.ran = Result(Outcome.ERROR)  # what the agent came to, whatever comes after it
        self.identity: dict[str, str] = {}  # git's, where the user has none

    def run(self) -> Outcome:
        """Take the lease over, do the work, settle; returns what it came to."""
        try:
            self.take_over()
            try:
                result = self.work()
            except LeaseLost:
                raise
            except Interrupted as cut:
                ended = executor.Ended(None, cut.why, "", 0.0)
                result = self.cut_short(ended, "the attempt")
            except (ConfigError, prompt.PromptError) as error:
                result = Result(Outcome.BLOCKED, "; ".join(p.what for p in error.problems))
            # ValueError: a prompt with a NUL as an argument, half a character in a name.
            except (RolecallError, OSError, ValueError, RecursionError) as error:
                result = Result(Outcome.ERROR, str(error).removeprefix("error: "))
            changes = {**self.changes, **(result.changes or {})}
            usage = self.ran.usage if result.usage is None else result.usage
            session = capture.masked_text(result.session or self.ran.session, self.secrets)
            note = capture.masked_text(result.note, self.secrets)
            result = result._replace(note=note, session=session, changes=changes, usage=usage)
            outcome = self.settle(result)
            self.reclaim()
            return outcome
        except LeaseLost as lost:
            if self.kept:  # it must not stand there as what counted
                self.keep(Result(Outcome.LOST, lost.problems[0].what))
            name = f"{self.lease.task_id} (token {self.lease.token})"
            self.log.say(f"{name}: lost, nothing was written: {lost.problems[0].what}", "warning")
            return Outcome.LOST

    def take_over(self) -> None:
        """Make the lease our own; a disk that takes no writes is waited for while there is time."""
        me = process.identity()
        until = self.renewed + self.role.lease_ttl * (1 - MARGIN)
        while True:
            sent = time.monotonic()
            try:
                self.lease = self.queue.take_over(self.lease, me, self.brief.unit)
            except LeaseLost:
                raise
            except (OSError, RolecallError) as error:
                self.log.once("renew", f"{self.lease.task_id}: cannot take the lease over: {error}")
                if self.stop.asked() or time.monotonic() >= until:
                    raise LeaseLost("the lease could not be taken over") from error
                wait([self.stop.fd], RETRY)
            else:
                self.renewed = sent
                self.stop.heed(self.lease)
                return

    def work(self) -> Result:
        """Worktree, prompt, agent, result, evidence, gates; and main, where the role merges."""
        if self.stop.asked():
            return Result(Outcome.RELEASED, self.stop.why)
        if not (self.role.agent or self.role.merge):
            return Result(Outcome.BLOCKED, f"role {self.role.name} has no agent")
        if not (self.role.worktree or self.role.evidence):
            return self.run_gates(self.ask_agent())
        from daemon.git import Git  # noqa: PLC0415  # only these roles pay for it
        from daemon.workbench import Workbench  # noqa: PLC0415

        git = Git(self.tick, self.stop, self.deadline, self.config.paths.worktrees)
        self.identity = git.extra
        brief, changes = self.brief, self.changes
        bench = Workbench(
            git, self.config, self.lease, brief.task, brief.run_dir, self.marker, changes
        )
        self.cwd = bench.cwd
        return bench.work(self.ask_agent, self.run_gates)

    def ask_agent(self) -> Result:
        """Prompt, agent, result; a role that merges may have no agent, and nothing against that."""
        if not self.role.agent:
            self.write_task()
            return Result(Outcome.SUCCESS, usage={})
        prompt_text = self.write_prompt()
        gc.enable()  # launch switched it off for the start
        self.ran = self.of_task(self.run_agent(prompt_text))
        return self.ran

    def of_task(self, result: Result) -> Result:
        """The agent's result in the light of its task: whether a plan is one, and what to do."""
        preset, name = self.preset, self.lease.task_id
        if preset is None:
            return result
        if self.role.rules.on_success == lifecycle.PLANNED and not result.add_tasks:
            result = verdict.of_plan(result, has_children=self.queue.has_children(name))
        started = result.usage != {}  # see run_agent
        hint = f"log in: {preset.login}" if started else f"install it: {preset.install}"
        return verdict.with_hint(result, hint, name)

    def write_task(self) -> str:
        """Put the task into the run's folder; returns it as JSON."""
        task_json = json.dumps(self.brief.task, indent=2, ensure_ascii=False)
        evidence.write_new(self.brief.run_dir, "task.json", task_json + "\n")
        return task_json

    def write_prompt(self) -> str:
        """Render the prompt and put it, and the task, into the run's folder."""
        given = values.of(
            self.config,
            self.lease,
            self.brief.task,
            self.brief.run_dir,
            self.cwd,
            self.changes.get("branch"),
            lambda names: self.queue.snapshot(names).tasks,
        )
        self.write_task()
        text = prompt.of(self.config, self.role, given)
        evidence.write_new(self.brief.run_dir, "prompt.md", text)
        return text

    def file(self, name: str) -> str:
        """A file of the run's folder."""
        return os.path.join(self.brief.run_dir, name)

    def run_agent(self, prompt_text: str) -> Result:
        """Run the agent's program and weigh exit status, its own record and its result file."""
        role, preset = self.role, self.preset
        env = self.agent_environment()
        ended = self.execute(
            self.arguments(prompt_text),
            env,
            prompt_text.encode(errors="backslashreplace") if role.prompt_via == "stdin" else b"",
            LOGS,
        )
        with contextlib.suppress(OSError):
            capture.mask_files(self.brief.run_dir, self.secrets, ("task.json", "prompt.md", *LOGS))
        if ended.why == "not started":  # known: it has spent nothing
            note = f"the agent cannot be started: {ended.note}"
            return Result(Outcome.BLOCKED, note, usage={}, denied=preset is not None)
        if ended.why != "exited":
            return self.cut_short(ended, "the agent")._replace(**self.spent(ended))
        try:
            said = evidence.read_result(self.brief.run_dir, self.secrets)
        except RolecallError as error:
            note = f"result file: {error.problems[0].what}"
            return Result(Outcome.ERROR, note)._replace(**self.spent(ended))
        status = ended.status or 0
        if preset is None:
            return verdict.of_command(status, said)
        record = presets.read(preset, presets.Traces(status, self.brief.run_dir, time.time()))
        return verdict.of_preset(status, record, said, silent_is_fine=role.evidence)

    def spent(self, ended: executor.Ended) -> dict[str, Any]:
        """What a preset's CLI tells of its usage and its session, whatever the run came to."""
        if self.preset is None:
            return {}
        traces = presets.Traces(ended.status or 0, self.brief.run_dir, time.time())
        record = presets.read(self.preset, traces)
        return {"usage": record.usage or None, "session": record.session}

    def agent_environment(self) -> dict[str, str]:
        """All that the agent finds in its environment; what of it is secret is masked from now."""
        role, preset = self.role, self.preset
        extra = environment.read_env_file(role.env_file) if role.env_file else {}
        names = {*role.pass_env, *(preset.pass_env if preset else ())}
        passed = {key: self.brief.env[key] for key in names if key in self.brief.env}
        self.secrets = environment.secrets(passed, extra)
        own = {**preset.env, **preset.settings(role)} if preset else {}
        return {**self.environment(), **own, **passed, **extra, **role.env, **self.rolecall()}

    def environment(self) -> dict[str, str]:
        """What the agent and the gates have in common."""
        return {**environment.base(self.brief.env), **self.identity}

    def rolecall(self) -> dict[str, str]:
        """The variables of ours."""
        return {
            "ROLECALL_TASK_ID": self.lease.task_id,
            "ROLECALL_ROLE": self.role.name,
            "ROLECALL_ATTEMPT": str(self.lease.attempt),
            "ROLECALL_TOKEN": str(self.lease.token),
            "ROLECALL_TASK_FILE": self.file("task.json"),
            "ROLECALL_RESULT_FILE": self.file("result.json"),
            "ROLECALL_QUEUE": self.config.queue,
            "ROLECALL_WORKSPACE": self.config.workspace,
        }

    def arguments(self, prompt_text: str) -> tuple[str, ...]:
        """The agent's argument list: each ``{name}`` is filled in, no shell is involved."""
        values = {
            "task_id": self.lease.task_id,
            "role": self.role.name,
            "attempt": str(self.lease.attempt),
            "prompt": prompt_text,
            "prompt_file": self.file("prompt.md"),
            "result_file": self.file("result.json"),
            "worktree": self.cwd,
            "workspace": self.config.workspace,
        }
        template = (*self.role.command, *self.role.args)
        if self.preset:
            money = self.role.budget.attempt.cost_usd
            values |= {"run_folder": self.brief.run_dir, "model": self.role.model or ""}
            values["cost_usd"] = f"{money or 0:.6f}"
            model = self.preset.model if self.role.model else ()
            limit = self.preset.cost_limit if money is not None else ()
            template = (*self.preset.argv, *model, *limit, *self.role.args)
        given = [
            PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), each) for each in template
        ]
        name = {"argument": "prompt", "file": "prompt_file"}.get(self.role.prompt_via, "")
        if name and not any(f"{{{name}}}" in each for each in template):
            given.append(values[name])
        return tuple(given)

    def run_gates(self, result: Result) -> Result:
        """Each gate must pass. They run code that an agent wrote, and so get no credentials."""
        if result.outcome is not Outcome.SUCCESS:
            return result
        env = {**self.environment(), **self.role.env, **self.rolecall()}
        for number, gate in enumerate(self.role.gates, 1):
            log = f"gate-{number}.log"
            ended = self.execute(gate, env, b"", (log, log))
            name = " ".join(gate)
            if ended.why == "exited" and ended.status == 0:
                continue
            if ended.why == "not started":
                failed = Result(Outcome.BLOCKED, f"gate {name!r} cannot be started: {ended.note}")
            elif ended.why != "exited":
                failed = self.cut_short(ended, f"gate {name!r}")
            elif ended.status in KILLED:  # by the system or a person: that is no verdict
                note = f"gate {name!r} was ended by signal {-ended.status}"
                failed = Result(Outcome.ERROR, note)
            else:
                note = f"gate {name!r} failed with exit status {ended.status}: {self.file(log)}"
                failed = Result(Outcome.REJECTED, note)
            return failed._replace(usage=result.usage, session=result.session, gate=number)
        return result

    def cut_short(self, ended: executor.Ended, what: str) -> Result:
        """What a run that did not end by itself comes to."""
        if ended.why == "stopped":
            return Result(Outcome.RELEASED, self.stop.why)
        if ended.why == "unrenewed":
            return Result(Outcome.RELEASED, "the queue's server was away for too long")
        if ended.why == "stalled":
            return Result(
                Outcome.ERROR, f"{what} stalled: it printed nothing for {self.role.stall_after:g} s"
            )
        return Result(Outcome.ERROR, f"{what} timed out after {self.role.timeout:g} s")

    def execute(
        self,
        argv: tuple[str, ...],
        env: dict[str, str],
        stdin: bytes,
        logs: tuple[str, str],
    ) -> executor.Ended:
        """Run one program of the attempt; its whole tree is dead when this returns."""
        run = executor.Run(
            argv=argv,
            env=env,
            cwd=self.cwd,
            stdin=stdin,
            stdout=self.file(logs[0]),
            stderr=self.file(logs[1]),
            secrets=self.secrets,
            deadline=self.deadline,
            kill_grace=self.role.kill_grace,
            marker=self.marker,
            stall=self.role.stall_after,
        )
        ended = executor.execute(run, self.tick, self.stop)
        if ended.note and ended.why != "not started":
            self.log.say(f"{self.lease.task_id}: {ended.note}", "warning")
        return ended

    def tick(self) -> float:
        """Renew the lease; returns the seconds until it is due again.

        Raises LeaseLost, and Interrupted where the queue's server was away for too long.
        """
        sent = time.monotonic()  # the answer may be long on its way
        try:
            self.lease = self.queue.renew(self.lease, executor.sessions())
            self.renewed = sent
            self.stop.heed(self.lease)
        except LeaseLost:
            raise
        except (OSError, RolecallError) as error:
            left = self.renewed + self.role.lease_ttl * (1 - MARGIN) - time.monotonic()
            self.log.once("renew", f"{self.lease.task_id}: cannot renew the lease: {error}")
            if left <= 0 and isinstance(error, QueueUnreachable):
                raise Interrupted("unrenewed") from error  # it is told when the server is back
            if left <= 0:
                raise LeaseLost("the lease could not be renewed before it ran out") from error
            return min(RETRY, left)
        self.log.once("renew", "")
        return self.role.heartbeat

    def keep(self, result: Result) -> None:
        """Leave the final verdict in the run's folder, where later prompts find it."""
        folder = self.brief.run_dir
        self.kept = self.kept or (evidence.claimed(folder, self.secrets),)
        seconds = time.monotonic() - self.began
        found = evidence.final(result, self.kept[0], self.lease, self.role, seconds)
        why = evidence.keep(folder, found, self.secrets)
        if why:
            name = f"{self.lease.task_id} (token {self.lease.token})"
            self.log.say(f"{name}: its result.json cannot be kept: {why}", "warning")

    def settle(self, result: Result) -> Outcome:
        """Write what it came to. A queue that cannot be written now is waited for."""
        self.keep(result)
        due = 0.0
        while True:
            try:
                moves = self.queue.settle(self.lease, result)
            except LeaseLost:
                raise
            except (OSError, RolecallError) as error:
                level = "warning" if isinstance(error, QueueUnreadable) else "error"
                self.log.once("settle", f"{self.lease.task_id}: cannot settle yet: {error}", level)
            else:
                return self.outcome(moves, result)
            if time.monotonic() >= due:
                # Its tree is dead, so a lease that runs out does no harm: the token decides.
                self.renewed = time.monotonic()
                due = time.monotonic() + self.tick()
            wait((), RETRY)

    def reclaim(self) -> None:
        """Remove worktrees that tasks need no more; what fails is told, and tried by the next."""
        if not os.path.isdir(self.config.paths.worktrees):
            return
        from daemon import reclaim  # noqa: PLC0415  # only where there are worktrees
        from daemon.git import Git  # noqa: PLC0415

        until = time.monotonic() + RECLAIM
        git = Git(stop=self.stop, deadline=until, ceiling=self.config.paths.worktrees)
        try:
            reclaim.reclaim(git, self.config, self.queue.snapshot)
        except Interrupted:
            return
        except (OSError, RolecallError) as error:
            self.log.say(f"worktrees are not reclaimed: {error}", "warning")

    def outcome(self, moves: tuple[Move, ...], result: Result) -> Outcome:
        """What the queue made of our own outcome, which is what counts."""
        outcome = lifecycle.weigh(self.role.rules, result).outcome
        for move in moves:
            if move.task_id == self.lease.task_id and move.outcome not in {"", outcome}:
                outcome = Outcome(move.outcome)
                self.keep(result._replace(outcome=outcome, note=move.why, status=None))
        return outcome


def main() -> int:
    """Wire one attempt and run it."""
    signals = Signals(*DEFERRED)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEFERRED)
    with open(0, encoding="utf-8") as stdin:
        brief = read_brief(stdin.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    executor.become_subreaper()
    log = Log(brief.config.paths.logs, brief.lease.role, brief.lease.owner, unit=brief.unit_log)
    queue = open_queue(brief.config, teller=log)
    try:
        outcome = Attempt(brief, queue, log, Stop(signals)).run()
    finally:
        queue.close()
    return 1 if outcome is Outcome.ERROR else 0
