"""The ``invoke`` commands: parse, call, print. No logic of its own.

What a command needs is imported when it runs: a bare ``invoke`` must stay fast.
"""
# ruff: noqa: PLC0415, FBT001, FBT002, PLR0913, PLR0917, T201  # options are what a command has

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from invoke.collection import Collection
from invoke.exceptions import Exit
from invoke.tasks import task

FORKS, TIMEOUT = 5, 10.0  # Ansible's own
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
HELP = {
    "role": "one role; every role where none is named",
    "limit": "hosts and groups of the inventory, with commas between",
    "inventory": "the inventory folder (default: ROLECALL_INVENTORY, then the checkout's)",
    "workspace": "the git repository that the agents work on",
    "json": "print JSON, for a program",
    "check": "say what would change, change nothing",
    "diff": "show how files change",
    "follow": "go on until interrupted",
    "lines": "how many lines of the past",
    "forks": "how many hosts are worked on at once",
    "timeout": "seconds without a sign of life after which a host counts as unreachable",
    "debug": "show a traceback with an error",
}


def command(name: str | None = None, **help_: str) -> Callable[[Callable[..., int | None]], Any]:
    """Make an invoke task of a function; an error is our text on stderr and our exit status."""

    def decorate(body: Callable[..., int | None]) -> Any:
        def run(_context: object, *args: Any, debug: bool = False, **options: Any) -> None:
            from daemon.errors import RolecallError

            try:
                status = body(*args, **options)
                sys.stdout.flush()
            except RolecallError as error:
                if debug:
                    raise
                from daemon.fleet.output import error_text

                raise Exit(error_text(error), error.exit_code) from None
            except KeyboardInterrupt:
                raise Exit(code=INTERRUPTED) from None
            except BrokenPipeError:
                # Whoever read our output has seen enough; Python's own flush must not complain.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise Exit(code=0) from None
            except OSError as error:
                if debug:
                    raise
                where = f"{error.filename}: " if error.filename else ""
                raise Exit(f"error: {where}{error.strerror or error}", 1) from None
            if status:
                raise Exit(code=status)

        own = inspect.signature(body).parameters
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        first, last = (
            inspect.Parameter("context", kind),
            inspect.Parameter("debug", kind, default=False),
        )
        run.__name__, run.__doc__ = name or body.__name__, body.__doc__
        run.__module__ = body.__module__
        run.__signature__ = inspect.Signature([first, *own.values(), last])  # type: ignore[attr-defined]
        known = {name: HELP[name] for name in (*own, "debug") if name in HELP}
        return task(run, help={**known, **help_}, auto_shortflags=False)

    return decorate


@command(
    workspace="the repository; the inventory's own where none is named",
    merge_driver="have this clone's git merge the queue task by task",
)
def init(
    workspace: str | None = None,
    merge_driver: bool = False,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Give a repository its queue, its prompts and its inventory entry."""
    from daemon.fleet.init import init as steps
    from daemon.fleet.output import escape

    for step in steps(workspace, inventory, limit, merge_driver=merge_driver):
        print(escape(str(step)))


@command()
def install(
    limit: str | None = None,
    inventory: str | None = None,
    check: bool = False,
    diff: bool = False,
    json: bool = False,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
) -> int:
    """Render units from the YAML, install them, enable them; the second time changes nothing."""
    from daemon.fleet import fanout, here, report

    fleet, how = here.fleet(inventory, limit), fanout.How.of(forks, timeout)
    answers = fanout.ask(*fleet, "install", {"check": check}, how)
    return report.print_installed(fleet.hosts, answers, check=check, diff=diff, json=json)


@command()
def uninstall(
    limit: str | None = None,
    inventory: str | None = None,
    check: bool = False,
    diff: bool = False,
    json: bool = False,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
) -> int:
    """Remove what install made, and nothing else; the workers are stopped before."""
    from daemon.fleet import fanout, here, report

    fleet, how = here.fleet(inventory, limit), fanout.How.of(forks, timeout)
    answers = fanout.ask(*fleet, "uninstall", {"check": check}, how)
    return report.print_installed(fleet.hosts, answers, check=check, diff=diff, json=json)


@command(
    serial="how many hosts at a time: a number, or a percentage of them",
    settle="seconds that new workers must stay up before the next hosts follow",
    forks="how many hosts are asked at once whether they are ready",
)
def deploy(
    limit: str | None = None,
    inventory: str | None = None,
    serial: str = "1",
    settle: float = 5.0,
    check: bool = False,
    diff: bool = False,
    json: bool = False,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
) -> int:
    """Hand workers over to this release and config, host by host; a host that fails is put back."""
    from daemon.fleet import deploy as deploying
    from daemon.fleet import fanout, here

    fleet, how = here.fleet(inventory, limit), fanout.How.of(forks, timeout)
    wish = deploying.Wish(serial, settle, check, diff, json)
    return int(deploying.deploy(*fleet, how, wish))


@command()
def config(limit: str | None = None, inventory: str | None = None, json: bool = False) -> None:
    """Show the effective config of each host, with where each value came from."""
    from daemon.fleet import here
    from daemon.fleet.output import as_json, escape

    fleet = here.fleet(inventory, limit)
    fleet.inventory.configs(fleet.hosts)
    if json:
        print(as_json({host.name: host.vars for host in fleet.hosts}))
    else:
        for line in fleet.inventory.describe(fleet.hosts):
            print(escape(line))


@command(
    in_unit="try each agent where its attempts will run: its version and a prompt of one line, "
    "which spends a few tokens of your account",
    answer_timeout="seconds that the answer to such a prompt may take",
)
def doctor(
    role: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
    workspace: str | None = None,
    json: bool = False,
    in_unit: bool = False,
    answer_timeout: int = 120,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
) -> int:
    """Say whether each host is ready, and what to type where it is not."""
    from daemon.fleet import fanout, here, report

    fleet, how = here.fleet(inventory, limit), fanout.How.of(forks, timeout)
    asked, configs = here.of_role(fleet, role, workspace)
    options = {"role": role, "in_unit": answer_timeout if in_unit else 0}
    answers = fanout.ask(fleet.inventory, asked, "doctor", options, how, configs=configs)
    return report.print_findings(asked, answers, json=json)


@command(
    role="only what this role has spent",
    days="how many days, UTC (the sums by role and task are of all time)",
)
def budget(
    role: str | None = None,
    days: int = 7,
    json: bool = False,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Show what was spent, by role, day and task, and what may be."""
    from daemon.fleet import budget as budgets
    from daemon.fleet import here
    from daemon.fleet.output import Style, as_json

    report = budgets.look(here.fleet(inventory, limit).config(workspace), role, days)
    print(as_json(budgets.facts(report)) if json else budgets.text(report, Style.of(sys.stdout)))


@command(task_id="the task's id", role="as which role (default: the one whose turn it is)")
def prompt(
    task_id: str,
    role: str | None = None,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Show what an agent would get for a task now; nothing is made or changed."""
    from daemon.fleet import here, preview
    from daemon.fleet.output import shown

    config = here.fleet(inventory, limit).config(workspace)
    print(shown(preview.text(config, task_id, role), sys.stdout), end="")


@command()
def start(
    role: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
) -> int:
    """Start the workers."""
    from daemon.fleet import agents, fanout, here

    return agents.tell(*here.fleet(inventory, limit), "start", role, fanout.How.of(forks, timeout))


@command()
def stop(
    role: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
) -> int:
    """Stop the workers: attempts may end within the stop budget."""
    from daemon.fleet import agents, fanout, here

    return agents.tell(*here.fleet(inventory, limit), "stop", role, fanout.How.of(forks, timeout))


@command()
def restart(
    role: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
) -> int:
    """Restart the workers; attempts live on."""
    from daemon.fleet import agents, fanout, here

    return agents.tell(
        *here.fleet(inventory, limit), "restart", role, fanout.How.of(forks, timeout)
    )


@command()
def status(
    role: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
    json: bool = False,
) -> int:
    """Show each worker. Exit status: 0 all run, 3 some don't, 4 a host can't be reached."""
    from daemon.fleet import agents, fanout, here
    from daemon.fleet.output import Style, as_json

    rows, failures = agents.status(
        *here.fleet(inventory, limit), role, fanout.How.of(forks, timeout)
    )
    print(as_json(agents.as_json(rows)) if json else agents.table(rows, Style.of(sys.stdout)))
    failures.tell()
    return int(agents.exit_status(rows))


@command()
def logs(
    role: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
    forks: int = FORKS,
    timeout: float = TIMEOUT,
    follow: bool = False,
    lines: int = 50,
) -> int:
    """Show what the workers and their attempts log."""
    from daemon.fleet import agents, fanout, here

    fleet, how = here.fleet(inventory, limit), fanout.How.of(forks, timeout)
    return int(agents.logs(*fleet, role, how, follow=follow, lines=lines))


@command(
    "list",
    status="only these statuses, with commas between",
    role="only what this role holds or claims",
    type="only tasks of this type",
    standing="only tasks that stand so (claimable, held, backoff, dependency, parked, ...)",
    board="by status, with each role's WIP",
)
def list_(
    status: str | None = None,
    role: str | None = None,
    type: str | None = None,  # noqa: A002  # as the task's key is named
    standing: str | None = None,
    board: bool = False,
    json: bool = False,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """List the tasks, and what each waits for."""
    from daemon.fleet import board as boards
    from daemon.fleet import here

    found = boards.Board(here.fleet(inventory, limit).queue_config(workspace))
    found.hint()
    statuses = [name.strip() for name in (status or "").split(",") if name.strip()]
    picked = found.pick(statuses, role, type, standing)
    print(boards.print_list(found, picked, json_=json, by_status=board))


@command(task_id="the task's id")
def show(
    task_id: str,
    json: bool = False,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Show everything about one task: its keys, its lease, why it waits, its attempts."""
    from daemon.fleet import board as boards
    from daemon.fleet import here
    from daemon.fleet.output import Style, as_json

    board = boards.Board(here.fleet(inventory, limit).queue_config(workspace))
    board.hint()
    wait = board.find(task_id)
    print(
        as_json(boards.detail(board, wait))
        if json
        else boards.show(board, wait, Style.of(sys.stdout))
    )


@command(
    title="what is to be done",
    id="the task's id (default: the next T001, T002, ...)",
    type="Build, Story, Test, ... (a Story starts in needs_plan, a Test in awaiting_test)",
    status="where it starts (default: by its type)",
    priority="a number, 1 first",
    depends="ids that must be done before, with commas between",
    parent="the id of its story",
    json="a JSON file of one task or several; - is standard input",
)
def add(
    title: str | None = None,
    id: str | None = None,  # noqa: A002  # as the task's key is named
    type: str | None = None,  # noqa: A002  # as the task's key is named
    status: str | None = None,
    priority: str | None = None,
    depends: str | None = None,
    parent: str | None = None,
    json: str | None = None,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Add a task to the queue, or those of a JSON file."""
    from daemon.fleet import adding, here

    config = here.fleet(inventory, limit).queue_config(workspace)
    tasks = adding.new_tasks(
        json,
        title=title,
        id=id,
        type=type,
        status=status,
        priority=priority,
        depends=depends,
        parent=parent,
    )
    for line in adding.add(config, tasks):
        print(line)


@command(
    task_ids="the tasks' ids, with commas between; all: those of --standing",
    status="where they shall go (default: where they came from)",
    standing="with all: those that stand so (parked, backoff, credential, ...)",
)
def retry(
    task_ids: str,
    status: str | None = None,
    standing: str | None = None,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Have tasks tried again at once: parked ones, or those that wait after an error."""
    from daemon.fleet import asking, here

    config = here.fleet(inventory, limit).queue_config(workspace)
    for line in asking.retry(config, task_ids, status, standing):
        print(line)


@command(task_id="the task's id")
def cancel(
    task_id: str,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Cancel a task; what works on it is ended first."""
    from daemon.fleet import asking, here

    for line in asking.cancel(here.fleet(inventory, limit).queue_config(workspace), task_id):
        print(line)


@command(task_id="the task's id")
def release(
    task_id: str,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Take a task from who holds it: it goes back, and nothing is counted."""
    from daemon.fleet import asking, here

    for line in asking.release(here.fleet(inventory, limit).queue_config(workspace), task_id):
        print(line)


@command(
    "import",
    path="a queue's JSON file; - is standard input",
    replace="take the file in place of the whole queue",
)
def import_(
    path: str,
    replace: bool = False,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Take in the tasks of another queue: all, or none where one is another task here."""
    from daemon.fleet import here, transfer

    for line in transfer.load(here.fleet(inventory, limit).queue_config(workspace), path, replace):
        print(line)


@command(to="a new file (default: standard output)")
def export(
    to: str | None = None,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> None:
    """Write the queue out as it is: of a file every byte."""
    from daemon.fleet import here, transfer

    for line in transfer.export(here.fleet(inventory, limit).queue_config(workspace), to):
        print(line)


@command("init", queue="one database, as its owner reaches it (default: the inventory's queues)")
def queue_init(
    queue: str | None = None, limit: str | None = None, inventory: str | None = None
) -> None:
    """Make a queue on PostgreSQL, or bring its schema up to date."""
    from daemon.fleet import database, here
    from daemon.fleet.output import escape

    for line in database.init(here.fleet(inventory, limit), queue):
        print(escape(line))


@command(against="compare instead: a queue's file, or a queue's URL; exit status 1: they differ")
def check(
    against: str | None = None,
    json: bool = False,
    workspace: str | None = None,
    limit: str | None = None,
    inventory: str | None = None,
) -> int:
    """Say why each task waits, and what is wrong with the queue. Exit status 1: something is."""
    from daemon.fleet import board as boards
    from daemon.fleet import comparing, here
    from daemon.fleet.output import Style, as_json

    config = here.fleet(inventory, limit).queue_config(workspace)
    if against is not None:
        found = comparing.against(config, against)
        facts = (config, against, found)
        print(as_json(comparing.facts(*facts)) if json else comparing.text(*facts))
        return int(bool(found))
    board = boards.Board(config)
    board.hint()
    print(as_json(boards.check_facts(board)) if json else boards.check(board, Style.of(sys.stdout)))
    return int(bool(board.problems))


agents = Collection("agents", start, stop, restart, status, logs)
queue = Collection(
    "queue", queue_init, list_, show, add, retry, cancel, release, check, import_, export
)
namespace = Collection(
    init, install, deploy, uninstall, config, doctor, budget, prompt, agents, queue
)
