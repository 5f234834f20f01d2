"""Servers that go away, and workspaces whose queue is on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.postgres import Server

if TYPE_CHECKING:  # psycopg is an extra: most tests do without
    from tests.faults.away import Make, Servers, Shared, Way


@pytest.fixture
def server(servers: Servers) -> Server:
    """One of the test's own."""
    return servers()


@pytest.fixture
def way(server: Server) -> Iterator[Way]:
    """A way to it."""
    from tests.faults.away import Way  # noqa: PLC0415  # see above

    with Way(server.uri) as way:
        yield way


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a workspace of builders whose queue is on a server."""
    from tests.faults.away import COUNTED, Shared  # noqa: PLC0415  # see above

    made: list[Shared] = []

    def shared(server: Server, way: Way | None = None, script: str = "", **role: Any) -> Shared:
        url = server.create("sprint")
        ws = Shared(tmp_path, url, way.url(url) if way else url)
        made.append(ws)
        ws.init()
        ws.write_config(builder={"script": script or COUNTED, **role})
        ws.fill()
        return ws

    yield shared
    for ws in made:
        ws.end()
