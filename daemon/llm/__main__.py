"""The program: settings from the environment, the prompt on standard input, a record at the end."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import closing

from daemon import environment, executor, verdict
from daemon.agents.preset import Record
from daemon.errors import EXIT_ERROR, ConfigError
from daemon.llm import settings as told
from daemon.llm.commands import Commands
from daemon.llm.files import Files
from daemon.llm.transcript import Transcript
from daemon.model import Outcome
from daemon.wake import Signals

EXITS = {
    Outcome.SUCCESS: 0,
    Outcome.THROTTLED: verdict.EXIT_THROTTLED,
    Outcome.BLOCKED: verdict.EXIT_MISCONFIGURED,
}
EXTRA = "the LLM loop's packages are not installed: make llm"


class Stop:
    """The wish that the run should end: the attempt's TERM."""

    def __init__(self) -> None:
        self._signals = Signals(signal.SIGTERM, signal.SIGINT)
        self.fd = self._signals.fd
        self._asked = False

    def asked(self) -> bool:
        """Whether it came; stays true."""
        self._asked = self._asked or bool(self._signals.taken())
        return self._asked


def work(
    environ: Mapping[str, str],
    prompt: str,
    cwd: str,
    stop: executor.Stop,
    cost_usd: float | None = None,
) -> Record:
    """The run, wired; what it came to. ``cost_usd``: a limit that wins over the settings' own."""
    try:
        settings = told.read(environ)
        if cost_usd is not None:
            settings = settings._replace(cost_usd=cost_usd)
    except ConfigError as error:
        return Record(Outcome.BLOCKED, f"{error.problems[0].what}: {error.problems[0].hint}")
    try:
        from daemon.llm.loop import run  # noqa: PLC0415  # an extra, and seconds to load
        from daemon.llm.tools import Tools  # noqa: PLC0415  # the same
    except ImportError as error:
        return Record(Outcome.BLOCKED, f"{EXTRA} ({error})")
    folder = told.run_folder(environ)
    secrets = environment.secrets(settings.secrets(environ))
    commands = Commands(cwd, folder, settings.env, stop, settings.llm.read_bytes)
    with closing(Transcript(folder, secrets)) as transcript, closing(Files(cwd)) as files:
        tools = Tools(files, commands, settings.llm, environ["ROLECALL_RESULT_FILE"])
        record = run(settings, prompt, tools, transcript)
        transcript.add("record", record._asdict())
    return record


def main(arguments: list[str]) -> int:
    """Run, print the record as one line of JSON; the exit status says the same."""
    parser = argparse.ArgumentParser(prog="daemon.llm", description="Rolecall's LLM loop")
    parser.add_argument("--version", action="store_true", help="say what it runs on")
    parser.add_argument("--max-cost-usd", type=float, help="what the run may cost, in US dollars")
    options = parser.parse_args(arguments)
    if options.version:
        return version()
    prompt = sys.stdin.buffer.read().decode(errors="replace")
    record = work(os.environ, prompt, os.getcwd(), Stop(), options.max_cost_usd)
    said = {key: value for key, value in record._asdict().items() if value not in (None, "")}
    print(json.dumps(said), flush=True)  # noqa: T201  # what the attempt reads
    return EXITS.get(record.outcome, EXIT_ERROR)


def version() -> int:
    """Say what it runs on; 78 where that is not installed."""
    from importlib import metadata  # noqa: PLC0415  # only here

    try:
        print("pydantic-ai", metadata.version("pydantic-ai-slim"))  # noqa: T201  # a command
    except metadata.PackageNotFoundError:
        print(EXTRA, file=sys.stderr)  # noqa: T201  # a command
        return verdict.EXIT_MISCONFIGURED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
