"""What can go wrong on the way up, in one line for people."""

from __future__ import annotations

__all__ = ["ClusterError", "MissingProgramError"]


class ClusterError(Exception):
    """Something cannot be started; the message says what, and the way out."""


class MissingProgramError(ClusterError):
    """A program is not installed."""
