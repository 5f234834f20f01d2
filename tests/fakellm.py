"""A scripted LLM on 127.0.0.1 that real agent CLIs talk to: what it says depends on the path alone.

POST ``/SCENARIO/v1/chat/completions`` (OpenAI Chat), ``.../responses`` (OpenAI Responses),
``.../messages`` (Anthropic) or ``.../models/M:generateContent`` (Gemini), streaming or not. The
first segment of the base URL names the scenario; but for ``flaky``, nothing is remembered:

edit     asks for one shell command that adds a line to AGENT.txt, then says that all is done
work     the same with the command that suits $ROLECALL_ROLE, so that a whole sprint goes through
refuse   declines, in words                  loop     asks for one command after the other, for ever
eNNN     answers that HTTP status            limit    a subscription's usage limit, with its reset
flaky    429 twice for each conversation, then as edit
spawn    asks for a command that leaves processes behind and does not end (`spawned`: it has begun)
stall    takes the request and never answers
badargs  asks for a tool with broken arguments first, then as edit
drop     closes the stream half-way
script-X calls tools as X says, one in each turn (``script``), then says that all is done

``python -m tests.fakellm --port-file FILE`` serves until it is killed.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from tests import fakewires
from tests.fakewires import Answer, Json, Turn

MARK, FILE = "edited-by-agent", "AGENT.txt"
DONE = f"All done: {FILE} now holds {MARK}."
REFUSAL = "I can't help with that request."
RESETS_IN = 7200  # seconds until the limit of `limit` is over
#: What CLIs call the tool that runs a command, and the one that ends the conversation.
SHELLS = (
    *("Bash", "bash", "shell_command", "exec_command", "local_shell", "shell"),
    *("run_shell_command", "developer__shell", "terminal", "execute_bash"),
    *("run_terminal_command", "execute", "Shell", "run_command"),
)
FINISH = ("finish", "submit", "final_answer", "attempt_completion")
WRITERS = ("Write", "write", "write_file", "edit_file")
SCRIPT = "script-"
SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"  # mini-swe-agent's word for the end
SPAWN = 'touch spawned; tail -f /dev/null -s 977 & python3 -c "import time; time.sleep(976)"'
WORK = f"""case "$ROLECALL_ROLE" in
builder|refiner) echo {MARK} >> "$ROLECALL_TASK_ID.txt" && git add "$ROLECALL_TASK_ID.txt" \
&& git commit --quiet --message "$ROLECALL_TASK_ID: done" ;;
planner) printf '{{"outcome": "success", "add_tasks": [{{"id": "%s-B1", "parent": "%s", \
"title": "Built by the plan", "type": "Build"}}]}}' "$ROLECALL_TASK_ID" "$ROLECALL_TASK_ID" \
> "$ROLECALL_RESULT_FILE" ;;
*) echo '{{"outcome": "success"}}' > "$ROLECALL_RESULT_FILE" ;;
esac"""
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
WIRES: dict[str, Callable[[Turn, Json], Answer]] = {
    "/chat/completions": fakewires.chat,
    "/responses": fakewires.responses,
    "/messages": fakewires.anthropic,
    "enerateContent": fakewires.gemini,
}


def tools_of(body: Json) -> dict[str, Json]:
    """The tools that the client offers, name to JSON Schema, whatever the wire."""
    found: dict[str, Json] = {}
    for tool in body.get("tools") or []:
        declared = tool.get("functionDeclarations") or tool.get("function_declarations") or []
        for each in declared or [tool.get("function") or tool]:
            schema = ("parametersJsonSchema", "parameters", "input_schema")
            if "name" in each:
                found[each["name"]] = next((each[key] for key in schema if each.get(key)), {})
    return found


def turns_of(body: Json) -> int:
    """How many results of tools the conversation holds: which turn this is."""
    count = 0
    for message in body.get("messages") or []:
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        count += message.get("role") == "tool"
        count += sum(part.get("type") == "tool_result" for part in parts if isinstance(part, dict))
    items = body.get("input")
    for item in items if isinstance(items, list) else []:
        count += str(item.get("type", "")).endswith("call_output")
    for content in body.get("contents") or []:
        count += sum("functionResponse" in part for part in content.get("parts", []))
    return count


def _filled(schema: Json, **wanted: Any) -> Json:
    """Arguments that fit the schema, those that are wanted among them."""
    properties: Json = schema.get("properties") or {}
    plain: Json = {"boolean": False, "integer": 1, "number": 1, "array": [], "object": {}}
    found: Json = {}
    for name in schema.get("required") or []:
        kind = properties.get(name) or {}
        sort = kind.get("type")
        sort = sort[0] if isinstance(sort, list) else sort
        found[name] = (kind.get("enum") or [plain.get(str(sort).lower(), "run")])[0]
    return found | {name: value for name, value in wanted.items() if name in properties}


def shell(tools: dict[str, Json], command: str) -> Turn | None:
    """A call of the client's own tool that runs a command; None where it has none."""
    for name in SHELLS:
        if name in tools:
            properties = tools[name].get("properties") or {}
            as_list = (properties.get("command") or {}).get("type") == "array"
            wanted: Json = {
                "command": ["bash", "-lc", command] if as_list else command,
                "cmd": command,
                "description": "run",
                "timeout_ms": 600_000,
                "yield_time_ms": 30_000,
            }
            if name in SHELLS[:6]:
                wanted["timeout"] = 600_000  # milliseconds there, seconds or nothing elsewhere
            return Turn(tool=name, arguments=_filled(tools[name], **wanted))
    return None


def script(*calls: tuple[str, Json | str]) -> str:
    """The scenario in which these tools are called with these arguments (text: broken JSON)."""
    return SCRIPT + urlsafe_b64encode(json.dumps(calls).encode()).decode()


def _next_of(scenario: str, turn: int) -> Turn:
    calls = json.loads(urlsafe_b64decode(scenario.removeprefix(SCRIPT)))
    return Turn(tool=calls[turn][0], arguments=calls[turn][1]) if turn < len(calls) else Turn(DONE)


def decide(scenario: str, body: Json, raw: str) -> Turn:
    """What the model says to that."""
    tools, turn = tools_of(body), turns_of(body)
    if not tools:
        return _without_tools(scenario, raw)
    if scenario == "refuse":
        return Turn(REFUSAL)
    if scenario.startswith(SCRIPT):
        return _next_of(scenario, turn)
    first = 1 if scenario == "badargs" else 0
    if scenario == "badargs" and turn == 0 and (call := shell(tools, "true")):
        return call._replace(arguments="{not json")
    if scenario == "loop" and (call := shell(tools, f"echo turn-{turn} >> loop.txt")):
        return call
    if turn == first:
        return _work(scenario, tools) or Turn(DONE)
    if SUBMIT in raw and turn == first + 1 and (call := shell(tools, f"echo {SUBMIT}")):
        return call
    name = next((each for each in FINISH if each in tools), "")
    if not name:
        return Turn(DONE)
    words = dict.fromkeys(("message", "result", "answer"), "All done.")
    return Turn(tool=name, arguments=_filled(tools[name], **words))


def _work(scenario: str, tools: dict[str, Json]) -> Turn | None:
    """The one thing that is asked for, of whichever tool there is."""
    command = {"spawn": SPAWN, "work": WORK}.get(scenario, f"echo {MARK} >> {FILE}")
    if call := shell(tools, command):
        return call
    for name in WRITERS:
        if name in tools:
            words = {"file_path": FILE, "path": FILE, "content": f"{MARK}\n"}
            words |= {"old_string": "", "new_string": f"{MARK}\n"}
            return Turn(tool=name, arguments=_filled(tools[name], **words))
    return None


def _without_tools(scenario: str, raw: str) -> Turn:
    """Aider edits by a block of text; others ask for a title or a routing decision."""
    if "SEARCH" in raw and "REPLACE" in raw:
        block = f"<<<<<<< SEARCH\n=======\n{MARK}\n>>>>>>> REPLACE"
        return Turn(REFUSAL if scenario == "refuse" else f"Done.\n\n{FILE}\n```\n{block}\n```\n")
    if "schema" in raw.lower():
        told = {"title": "t", "reasoning": "r", "next_speaker": "user", "isNewTopic": False}
        return Turn(json.dumps({**told, "model_choice": "flash"}))
    return Turn("ok")


def refusal(status: int, wire: str) -> tuple[Json, dict[str, str]]:
    """The body and the headers of an error."""
    kind = ERRORS.get(status, "api_error")
    code = status if wire == "enerateContent" else kind
    error = {"type": kind, "message": f"fake {status}", "code": code, "status": kind.upper()}
    return {"type": "error", "error": error}, {"Retry-After": "1"}


def limit(wire: str) -> tuple[Json, dict[str, str]]:
    """A 429 of a subscription that is used up, as each provider words it."""
    resets = int(time.time()) + RESETS_IN
    if wire == "/messages":
        prefix = "anthropic-ratelimit-unified-"
        told = {"status": "rejected", "reset": str(resets), "representative-claim": "five_hour"}
        error = {"type": "rate_limit_error", "message": "This request would exceed your limit."}
        headers = {f"{prefix}{key}": value for key, value in told.items()}
        return {"type": "error", "error": error}, headers | {"x-should-retry": "false"}
    if wire == "/responses":
        error = {"type": "usage_limit_reached", "message": "The usage limit has been reached"}
        return {"error": {**error, "plan_type": "plus", "resets_at": resets}}, {}
    words = f"You exceeded your current quota. Please retry in {RESETS_IN}.5s."
    return {"error": {"code": 429, "message": words, "status": "RESOURCE_EXHAUSTED"}}, {}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    requests: ClassVar[Counter[str]] = Counter()  # by scenario
    conversations: ClassVar[Counter[str]] = Counter()  # what flaky has turned away
    lock: ClassVar[threading.Lock] = threading.Lock()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in the base
        """Nothing: tests are quiet."""

    def answer(self, status: int, document: Json, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.answer(200, {})

    def do_GET(self) -> None:
        if self.path == "/_requests":
            self.answer(200, dict(self.requests))
        elif self.path.partition("?")[0].endswith("/models"):
            model = {"id": "fake-model", "object": "model", "type": "model", "created": 1}
            self.answer(200, {"object": "list", "data": [model], "has_more": False, "models": []})
        else:
            self.answer(404, {"error": {"message": "no such path", "type": "not_found_error"}})

    def do_POST(self) -> None:
        raw = self.body()
        try:
            body: Json = json.loads(raw or "{}")
        except ValueError:
            body = {}
        path = self.path.partition("?")[0]
        scenario = path.strip("/").partition("/")[0]
        with self.lock:
            self.requests[scenario] += 1
        if path.endswith(("/count_tokens", ":countTokens")):
            tokens = fakewires.IN_TOKENS
            self.answer(200, {"input_tokens": tokens, "totalTokens": tokens})
            return
        wire = next((each for each in WIRES if each in path), "")
        if not wire:
            self.answer(404, {"error": {"message": f"no {path}", "type": "not_found_error"}})
        elif scenario == "limit":
            self.answer(429, *limit(wire))
        elif status := self.status(scenario, body):
            self.answer(status, *refusal(status, wire))
        elif scenario == "stall":
            threading.Event().wait()
        else:
            body["stream"] = body.get("stream") or "streamGenerate" in path
            self.say(scenario, WIRES[wire](decide(scenario, body, raw), body))

    def status(self, scenario: str, body: Json) -> int:
        """The HTTP status of a scenario that answers none but that; 0 for another one."""
        if scenario[:1] == "e" and scenario[1:].isdigit():
            return int(scenario[1:])
        if scenario == "flaky" and tools_of(body) and not turns_of(body):
            # Not the whole body: some clients number their tries in it.
            said = json.dumps([body.get(key) for key in ("messages", "input", "contents")])
            with self.lock:
                self.conversations[said] += 1
                if self.conversations[said] <= 2:
                    return 429
                del self.conversations[said]
        return 0

    def say(self, scenario: str, answer: Answer) -> None:
        document, events = answer
        if document is not None:
            self.answer(200, document)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        events = events or []
        for name, data in events[: len(events) // 2] if scenario == "drop" else events:
            text = data if isinstance(data, str) else json.dumps(data)
            head = f"event: {name}\n" if name else ""
            self.wfile.write(f"{head}data: {text}\n\n".encode())
            self.wfile.flush()

    def body(self) -> str:
        if not self.headers.get("Transfer-Encoding"):
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return data.decode(errors="replace")
        data = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data.decode(errors="replace")


class Server(ThreadingHTTPServer):
    """Its threads end with the process, those that stall among them."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that is killed in the middle is what many tests are about."""


@contextmanager
def served() -> Iterator[str]:
    """Serve while the block runs; gives the URL that a scenario's name is put behind."""
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, help="where to write the port")
    options = parser.parse_args()
    with Server(("127.0.0.1", options.port), Handler) as server:
        if options.port_file:
            options.port_file.write_text(f"{server.server_address[1]}\n")
        server.serve_forever()


if __name__ == "__main__":
    main()
