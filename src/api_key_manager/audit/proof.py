"""Proofs that somebody else can check, and what has to be read to make them.

Pure. A proof is checked against its checkpoint before it is given out: what an editor did to the
hashes that it is made of must not look like a fault of whoever checks it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

from api_key_manager.audit.checkpoint import read_text
from api_key_manager.audit.merkle import (
    KEPT_LEVELS,
    Span,
    consistency,
    fold,
    inclusion,
    prove,
    verify_consistency,
    verify_inclusion,
    whole_spans,
)
from api_key_manager.core.exceptions import StorageError

__all__ = ["consistency_proof", "inclusion_proof", "needed"]

Hashes = Mapping[tuple[int, int], bytes]
"""Of leaves (level 0) and kept subtrees, by level and position."""


def needed(path: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Which kept hashes the ranges of a proof are made of: level, first, behind the last."""
    wanted = set()
    for start, end in path:
        for span in whole_spans(start, end):
            wanted.add(_kept(span))
    return sorted(wanted)


def _kept(span: Span) -> tuple[int, int, int]:
    """The kept hashes under a subtree."""
    up = span.level % KEPT_LEVELS
    return span.level - up, span.position << up, (span.position + 1) << up


def _hash_of(span: Span, hashes: Hashes) -> bytes:
    level, first, end = _kept(span)
    try:
        return fold([hashes[level, at] for at in range(first, end)])
    except KeyError:
        raise _damaged() from None


def _damaged() -> StorageError:
    return StorageError("the log is damaged: `akm audit verify` says where")


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def inclusion_proof(index: int, leaf: bytes, note: str, hashes: Hashes) -> dict[str, Any]:
    """That a leaf is in the log of a checkpoint.

    Args:
        index: of the leaf.
        leaf: its hash.
        note: the checkpoint.
        hashes: those that are :func:`needed`.

    Raises:
        StorageError: the log was damaged.
    """
    checkpoint = read_text(note)
    path = prove(inclusion(index, checkpoint.size), lambda span: _hash_of(span, hashes))
    if not verify_inclusion(leaf, index, checkpoint.size, path, checkpoint.root):
        raise _damaged()
    return {
        "index": index,
        "size": checkpoint.size,
        "leaf_hash": _text(leaf),
        "hashes": [_text(item) for item in path],
    }


def consistency_proof(old: str, new: str, hashes: Hashes) -> dict[str, Any]:
    """That the log of one checkpoint is the start of that of another.

    Raises:
        StorageError: the log was damaged.
    """
    before, after = read_text(old), read_text(new)
    path = prove(consistency(before.size, after.size), lambda span: _hash_of(span, hashes))
    if not verify_consistency(before.size, after.size, path, before.root, after.root):
        raise _damaged()
    return {
        "from": before.size,
        "size": after.size,
        "hashes": [_text(item) for item in path],
    }
