"""The tools that the model has. Their docstrings are what it is told of them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec

from pydantic_ai import ModelRetry, Tool, ToolFailed

from daemon import evidence
from daemon.config import Llm
from daemon.errors import RolecallError
from daemon.llm.commands import Commands, is_allowed, listed
from daemon.llm.files import Files, Refused
from daemon.model import Outcome

ENTRIES = 500  # of a listing
HITS = 100  # of a search
SEARCH = 10.0  # seconds
PATTERN = 1000  # characters

Given = ParamSpec("Given")


class Stopped(Exception):
    """The attempt is being stopped: the run ends at once."""


class Verdict(NamedTuple):
    """What the model reported; ``text`` is that as the result file has it."""

    outcome: Outcome
    note: str
    text: str


def _refusable(
    tool: Callable[Concatenate[Tools, Given], Awaitable[str]],
) -> Callable[Concatenate[Tools, Given], Awaitable[str]]:
    """Tell the model what is refused, rather than end the run."""

    @functools.wraps(tool)
    async def told(self: Tools, /, *given: Given.args, **named: Given.kwargs) -> str:
        try:
            return await tool(self, *given, **named)
        except Refused as refused:
            self.refused = True
            raise ToolFailed(str(refused)) from None

    return told


class Tools:
    """The tools over these files and commands.

    They are coroutines that never wait: pydantic-ai runs plain functions in threads, and there
    must be none beside a fork.
    """

    def __init__(self, files: Files, commands: Commands, llm: Llm, result_file: str) -> None:
        self.files, self.commands, self.llm = files, commands, llm
        self.result_file = result_file
        self.refused = False  # whether a call of the model's present answer was refused

    def all(self) -> list[Tool[object]]:
        """Those that the settings give; each runs alone, in the order of the calls."""
        given: list[Callable[..., Awaitable[str]]] = [
            self.list_files,
            self.read_file,
            self.search,
            self.edit_file,
            self.write_file,
        ]
        tools: list[Tool[object]] = [Tool(each, takes_ctx=False, sequential=True) for each in given]
        if self.llm.commands:
            text = f"{Tools.run_command.__doc__}\nIt must begin with: {listed(self.llm.commands)}"
            tools.append(Tool(self.run_command, takes_ctx=False, sequential=True, description=text))
        return tools

    @_refusable
    async def list_files(self, path: str = ".", pattern: str = "*", depth: int = 3) -> str:
        """List files and folders (they end in a slash) below a folder.

        Args:
            path: The folder, relative to the working folder.
            pattern: Only names that match it, such as `*.py`.
            depth: How many levels deep.
        """
        return self.files.list(path, depth, pattern, ENTRIES)

    @_refusable
    async def read_file(self, path: str, first_line: int = 1, last_line: int | None = None) -> str:
        """Read a text file, or some lines of it.

        Args:
            path: The file, relative to the working folder.
            first_line: The first line, counted from 1.
            last_line: The last line; the end of the file where it is left out.
        """
        return self.files.read(path, first_line, last_line, self.llm.read_bytes)

    @_refusable
    async def search(
        self, pattern: str, path: str = ".", *, literal: bool = False, ignore_case: bool = False
    ) -> str:
        """Search the text files below a folder; answers with path:line: text.

        Args:
            pattern: A regular expression (Python's), which may span lines.
            path: The folder or file, relative to the working folder.
            literal: Whether the pattern is plain text.
            ignore_case: Whether small and capital letters are the same.
        """
        if len(pattern) > PATTERN:
            raise Refused(f"the pattern is longer than {PATTERN} characters")
        self.files.parts(path)
        request = {
            "pattern": pattern,
            "path": path,
            "literal": literal,
            "ignore_case": ignore_case,
            "most": HITS,
        }
        found = self.commands.search(json.dumps(request), SEARCH, self.files.fd)
        self.heed()
        if found.ended == "exit status 1":
            raise Refused(found.text.strip())
        return found.text if not found.ended else f"{found.text}[the search was {found.ended}]"

    @_refusable
    async def edit_file(self, path: str, old: str, new: str) -> str:
        """Replace a piece of text in a file. It must stand there exactly once.

        Args:
            path: The file, relative to the working folder.
            old: The text as it stands in the file, with enough around it to be unique.
            new: What stands there afterwards.
        """
        return self.files.edit(path, old, new)

    @_refusable
    async def write_file(self, path: str, content: str) -> str:
        """Write a whole file, a new one or over an old one; folders are made as needed.

        Args:
            path: The file, relative to the working folder.
            content: All of its text.
        """
        return self.files.write(path, content)

    @_refusable
    async def run_command(self, command: list[str], seconds: float | None = None) -> str:
        """Run a program in the working folder, without a shell; what it leaves running is ended.

        Args:
            command: The program and its arguments.
            seconds: How long it may take, if less than usual.
        """
        if not is_allowed(command, self.llm.commands):
            raise Refused(
                f"that is not allowed; a command begins with: {listed(self.llm.commands)}"
            )
        most = self.llm.command_timeout
        limit = most if seconds is None or not 0 < seconds < most else seconds
        output = self.commands.run(command, limit)
        self.heed()
        return "\n".join(filter(None, (output.text, f"[{output.ended}]" * bool(output.ended))))

    async def report_result(
        self,
        outcome: Literal["success", "rejected", "blocked", "error"],
        note: str,
        artifacts: list[str] | None = None,
        add_tasks: list[dict[str, Any]] | None = None,
    ) -> Verdict:
        """End the work and say what it came to.

        Args:
            outcome: success: the task is done as asked. rejected: what was to be looked at is not
                good enough. blocked: a person is needed. error: it did not work.
            note: What was done, found or missing, in a few sentences.
            artifacts: Paths of what was made, if worth a mention.
            add_tasks: New tasks for the queue, if the task asks for them; each an object with id,
                title, type and whatever else the task says.
        """
        said = {
            "outcome": outcome,
            "note": note,
            "artifacts": artifacts or [],
            "add_tasks": add_tasks or [],
        }
        if self.refused:  # it was written before the model could know
            raise ModelRetry("a call before it was refused: look at that, then report again")
        text = json.dumps(said, indent=2, ensure_ascii=False)
        if len(text.encode(errors="backslashreplace")) >= evidence.RESULT_BYTES:
            raise ModelRetry("the result is not taken: it is larger than 1 MiB")
        try:
            result = evidence.parse_result(said)
        except RolecallError as error:
            raise ModelRetry(f"the result is not taken: {error.problems[0].what}") from None
        return Verdict(result.outcome, result.note, text)

    def keep(self, text: str) -> None:
        """Write the result file; one that a command has written before does not count."""
        folder, name = os.path.split(self.result_file)
        try:
            os.unlink(self.result_file)
        except FileNotFoundError:
            pass
        evidence.write_new(folder, name, text + "\n")

    def heed(self) -> None:
        """End the run, where the attempt is being stopped."""
        if self.commands.stop.asked():
            raise Stopped
