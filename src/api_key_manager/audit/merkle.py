"""The Merkle tree of RFC 6962 (and RFC 9162): hashes, growth, proofs and their verification.

Pure. A tree is known by its size and its *peaks*: the hashes of the complete subtrees that it is
made of, the largest first, one for each bit of the size. What was hashed once is not read again
to append; for proofs the hash of every complete subtree of 256, 65,536, … leaves is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from hmac import compare_digest
from typing import Final, NamedTuple

__all__ = [
    "EMPTY_ROOT",
    "HASH_BYTES",
    "KEPT_LEVELS",
    "Node",
    "Span",
    "consistency",
    "fold",
    "grow",
    "inclusion",
    "leaf_hashes",
    "prove",
    "root_of",
    "verify_consistency",
    "verify_inclusion",
    "whole_spans",
]

HASH_BYTES: Final = 32
KEPT_LEVELS: Final = 8
"""Of the subtrees' hashes, those of every so many levels are kept."""
EMPTY_ROOT: Final = hashlib.sha256().digest()

_sha256 = hashlib.sha256
_LARGEST = 2**63


class Node(NamedTuple):
    """The hash of a complete subtree of ``2 ** level`` leaves; which one of that size."""

    level: int
    position: int
    hash: bytes


class Span(NamedTuple):
    """A complete subtree, without its hash."""

    level: int
    position: int


def leaf_hashes(leaves: Iterable[bytes]) -> list[bytes]:
    """The hash of each leaf (RFC 6962, section 2.1)."""
    return [_sha256(b"\x00" + leaf).digest() for leaf in leaves]


def _join(left: bytes, right: bytes) -> bytes:
    return _sha256(b"\x01" + left + right).digest()


def grow(size: int, peaks: list[bytes], hashes: Iterable[bytes]) -> list[Node]:
    """Append leaves.

    Args:
        size: of the tree so far.
        peaks: of the tree so far; changed to those of the grown one.
        hashes: of the leaves.

    Returns:
        The subtrees to keep that became complete.
    """
    kept: list[Node] = []
    for new in hashes:
        at, level, joined = size, 0, new
        while at & 1:
            joined = _sha256(b"\x01" + peaks.pop() + joined).digest()
            at >>= 1
            level += 1
            if level % KEPT_LEVELS == 0:
                kept.append(Node(level, at, joined))
        peaks.append(joined)
        size += 1
    return kept


def root_of(peaks: Sequence[bytes]) -> bytes:
    """The root of the tree that has these peaks."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = _join(peak, root)
    return root


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes of one level."""
    while len(hashes) > 1:
        hashes = [_join(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
    return hashes[0]


def whole_spans(start: int, end: int) -> list[Span]:
    """The complete subtrees that the leaves of a proof's range are made of, the largest first.

    Args:
        start: the first leaf, a multiple of the smallest power of two that holds the range.
        end: behind the last one.
    """
    spans = []
    while start < end:
        level = (end - start).bit_length() - 1
        spans.append(Span(level, start >> level))
        start += 1 << level
    return spans


def _split(size: int) -> int:
    """The largest power of two that is smaller."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion(index: int, size: int) -> list[tuple[int, int]]:
    """The ranges of leaves whose roots prove a leaf (RFC 6962, section 2.1.1), nearest first.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("index: the tree has no such leaf")
    path: list[tuple[int, int]] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency(old: int, new: int) -> list[tuple[int, int]]:
    """The ranges whose roots prove that a tree is the start of another (section 2.1.2).

    Raises:
        ValueError: the old size is 0, or greater than the new one.
    """
    if not 0 < old <= new:
        raise ValueError("a proof leads from a tree that is not empty to one that is no smaller")
    path: list[tuple[int, int]] = []
    start, end, whole = 0, new, True
    while old < end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start, whole = middle, False
    if not whole:
        path.append((start, end))
    return path[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Whether a leaf's hash is in the tree of this root (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size <= _LARGEST or not _are_hashes([leaf, root, *proof]):
        return False
    at, last, result = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            result = _join(sibling, result)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            result = _join(result, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and compare_digest(result, root)


def verify_consistency(
    old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Whether the tree of the old root is the start of that of the new one (section 2.1.4.2).

    The empty tree is the start of any, which is no proof of anything: it is refused.
    """
    if not 0 < old <= new <= _LARGEST or not _are_hashes(proof):
        return False
    if old == new:
        return not proof and compare_digest(old_root, new_root)
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    older = newer = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            older, newer = _join(sibling, older), _join(sibling, newer)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            newer = _join(newer, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and compare_digest(older, old_root) and compare_digest(newer, new_root)


def _are_hashes(values: Iterable[bytes]) -> bool:
    return all(len(value) == HASH_BYTES for value in values)


def prove(path: Iterable[tuple[int, int]], subtree: Callable[[Span], bytes]) -> list[bytes]:
    """The hashes of a proof, from those of complete subtrees."""
    return [root_of([subtree(span) for span in whole_spans(start, end)]) for start, end in path]
