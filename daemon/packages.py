"""Installed packages, for a process that was started without them: its start was to be quick."""

from __future__ import annotations

import sys


def reach() -> None:
    """Let them be imported, where launch has started an attempt that needs one after all."""
    if sys.flags.no_site and "site" not in sys.modules:
        import site  # noqa: PLC0415  # seldom needed

        site.main()
