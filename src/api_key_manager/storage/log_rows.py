"""Rows of the transparency log as plain values, whatever an editor has put into them.

SQLite keeps a value of any type in any column. What is not of its column's type becomes one that
no row of ours has, so that its MAC does not fit and nothing that computes with it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api_key_manager.core.sealed import LogBatch, LogState
from api_key_manager.storage.events import MOST_LEAVES

__all__ = ["batch_from", "state_from", "whole"]

_INTEGER_BITS = 63


def whole(value: object) -> int:
    """A number of a column for whole ones; -1 for what is none."""
    return value if isinstance(value, int) and value.bit_length() <= _INTEGER_BITS else -1


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def state_from(row: Sequence[Any]) -> LogState:
    """A row of ``audit_origins``."""
    state = LogState(*row)
    return LogState(
        whole(state.origin),
        _text(state.name),
        whole(state.size),
        whole(state.number),
        whole(state.row_id),
        whole(state.legacy_to),
        whole(state.kept_from),
        _bytes(state.peaks),
        _bytes(state.mac),
    )


def batch_from(row: Sequence[Any]) -> LogBatch:
    """A row of ``audit_batches``."""
    batch = LogBatch(*row)
    length = whole(batch.length)
    return LogBatch(
        whole(batch.origin),
        whole(batch.first),
        length if length <= MOST_LEAVES else -1,
        None if batch.number is None else whole(batch.number),
        whole(batch.last_id),
        whole(batch.sealed_at),
        _bytes(batch.hashes),
        _text(batch.note),
        _bytes(batch.mac),
        None if batch.leaves is None else _bytes(batch.leaves),
    )
