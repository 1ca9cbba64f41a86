"""The command line, ``akm``. Commands import what they need when they run: help must be quick."""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Run ``akm`` on the arguments of this process.

    Returns:
        0 done, 1 refused, 2 usage or configuration, 130 interrupted, 141 nobody reads on.
    """
    from api_key_manager.cli.app import run

    return run()
