"""``python -m daemon``: read the arguments, wire a worker, run it."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from typing import NoReturn

from daemon import environment, executor, mounts, transient
from daemon.config import Config, load_apart
from daemon.errors import EXIT_CONFIG, ConfigError, QueueUnreachable, RolecallError
from daemon.log import Log
from daemon.queue import Queue
from daemon.queue.opening import how_to_make, open_queue
from daemon.service import Notifier, PidFile
from daemon.wake import Signals
from daemon.worker import SIGNALS, Mode, Worker


def positive(text: str) -> float:
    """Seconds, more than none."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: want seconds, more than 0")
    return value


def parser() -> argparse.ArgumentParser:
    """Every flag of ``python -m daemon``."""
    made = argparse.ArgumentParser(
        prog="python -m daemon",
        description="Run the worker of a role in the foreground; all roles where none is named.",
        epilog="Exit status: 0 done, 1 an attempt of --once or --drain ended in error, 2 usage, "
        "78 configuration (or an unreadable queue under --once and --drain).",
    )
    add = made.add_argument
    add("--role", metavar="R", help="the role to work for (default: every role)")
    add("--interval", type=positive, metavar="S", help="the longest sleep between looks, seconds")
    how = made.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="claim at most one task a role, then exit")
    how.add_argument("--drain", action="store_true", help="go on until nothing is claimable")
    add("--ignore-wip", action="store_true", help="claim even where the WIP limit is reached")
    add("--owner", metavar="NAME", help="who holds the leases (default: <host>:<role>)")
    add("--workspace", metavar="DIR", help="the git repository that the agents work on")
    add("--queue", metavar="URL", help="file:PATH or postgresql://HOST/DATABASE of the queue")
    add("--config", metavar="FILE", help="one YAML file instead of the checkout's inventory")
    add("--dry-run", action="store_true", help="say what would be claimed, change nothing")
    add("--log-format", choices=("text", "json"), default="text")
    add("--debug", action="store_true", help="show a traceback with an error")
    add("--pid-file", metavar="FILE", help=argparse.SUPPRESS)
    return made


def load(args: argparse.Namespace) -> Config:
    """The config that the arguments ask for. Raises ConfigError."""
    config = load_apart(args.config, workspace=args.workspace, queue=args.queue)
    if args.role is not None and args.role not in config.roles:
        known = ", ".join(config.roles)
        raise ConfigError(f"unknown role {args.role!r}", hint=f"the roles are: {known}")
    if not os.path.isdir(config.workspace):
        raise ConfigError(
            "the workspace is no folder",
            where=config.workspace,
            hint=f"invoke init --workspace {config.workspace}",
        )
    if args.interval is not None:
        roles = {name: role._replace(interval=args.interval) for name, role in config.roles.items()}
        config = config._replace(roles=roles)
    for name in [args.role] if args.role else list(config.roles):
        env_file = config.roles[name].env_file
        if env_file:
            environment.read_env_file(env_file)
    return config


def run(args: argparse.Namespace, notifier: Notifier) -> int:
    """Wire the worker and run it; returns the exit status."""
    # Asked before anything starts: only what a user manager started itself may start units.
    under_systemd = transient.available()
    signals = Signals(*SIGNALS)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    executor.become_subreaper()
    config = load(args)
    host = socket.gethostname()
    run_here = config.run or tuple(config.roles)
    roles = [args.role] if args.role else [name for name in config.roles if name in run_here]

    def owner(role: str) -> str:
        return args.owner or f"{host}:{role}"

    mode = Mode(args.once, args.drain, args.dry_run, args.ignore_wip)
    name = args.role or "all"
    foreground = mode.once or mode.drain or mode.dry_run
    log = Log(config.paths.logs, name, owner(name), form=args.log_format)
    queue = open_queue(config, teller=log)
    if is_missing(queue):
        print(
            f"{queue.name}: no queue here yet\nhint:  {how_to_make(config)}",
            file=sys.stderr,
        )
        if foreground:
            return 0
    kind = "" if config.on_postgres else mounts.kind(config.queue_file)
    if mounts.is_network(kind):
        log.say(f"the queue is on a network file system ({kind}): locks may not hold", "warning")

    def reload() -> tuple[Config, Queue]:
        fresh = load(args)
        return fresh, open_queue(fresh, teller=log)

    worker = Worker(
        config,
        roles,
        queue,
        log,
        mode=mode,
        owner=owner,
        notifier=notifier,
        signals=signals,
        watch=queue.watch(roles),
        environ={key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"},
        reload=reload,
        unit_log=f"{config.unit_prefix}-{name}.service" if under_systemd else "",
    )
    pid_file = PidFile(args.pid_file) if args.pid_file else None
    if pid_file:
        if pid_file.running():
            raise RolecallError(f"a worker of {name} runs already", where=args.pid_file)
        pid_file.write()
    try:
        if mode.drain:
            return worker.drain()
        return worker.once() if mode.once or mode.dry_run else worker.serve()
    finally:
        worker.queue.close()
        if pid_file:
            pid_file.remove()


def is_missing(queue: Queue) -> bool:
    """Whether there is no queue; for a server that does not answer, the worker waits."""
    try:
        return not queue.exists()
    except QueueUnreachable:
        return False


def main() -> NoReturn:
    """The command line: errors in one voice, and their exit statuses."""
    args = parser().parse_args()
    notifier, said = Notifier(), ""
    try:
        status = run(args, notifier)
    except RolecallError as error:
        if args.debug:
            raise
        said, status = str(error), error.exit_code
    except OSError as error:
        if args.debug:
            raise
        said = f"error: {error.filename or ''}: {error.strerror}"
        status = EXIT_CONFIG if isinstance(error, PermissionError) else 1
    if said:
        print(said, file=sys.stderr)
        # The supervisor keeps it, for those who may not read the journal.
        notifier.status(said.replace("\n", "; "))
    sys.stdout.flush()
    sys.exit(status)


if __name__ == "__main__":
    main()
