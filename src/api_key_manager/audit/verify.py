"""Checks a log: every leaf, event, hash and checkpoint, and says where what does not fit.

Pure: it is handed one stretch of the log after the other. What it relies on is the log's keys,
and checkpoints from outside the database where there are any; not the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from api_key_manager.audit.checkpoint import Checkpoint
from api_key_manager.audit.leaf import SALTED_BYTES, event_body, read_leaf, split_salt
from api_key_manager.audit.merkle import HASH_BYTES, grow, leaf_hashes, root_of
from api_key_manager.audit.sealing import Notary, cut_hashes
from api_key_manager.core.sealed import LogBatch, LogState

__all__ = ["Finding", "LogCheck"]

_ID: Final = 0


class Finding(NamedTuple):
    """One thing that does not fit.

    ``origin`` is the log, ``leaf`` the index, ``row_id`` the event's id; where it has one.
    ``noted``: the log itself says so, under its own checkpoints: it was found when it happened.
    """

    message: str
    origin: int | None = None
    leaf: int | None = None
    row_id: int | None = None
    noted: bool = False

    def __str__(self) -> str:
        where = [
            f"{name} {value}"
            for name, value in (
                ("log", self.origin), ("index", self.leaf), ("event id", self.row_id),
            )
            if value is not None
        ]  # fmt: skip
        return f"{', '.join(where)}: {self.message}" if where else self.message


class LogCheck:
    """The check of one log, from its first leaf to its last.

    Args:
        notary: who vouched for it.
        origin: which log it is.
        outside: roots by size, from checkpoints that were kept elsewhere.

    Attributes:
        size: how many leaves were checked.
        last_id: the last event that was.
        pending: how many events behind the last leaf wait to be sealed.
    """

    def __init__(
        self,
        notary: Notary,
        origin: int,
        outside: Mapping[int, bytes],
    ) -> None:
        self._notary = notary
        self._origin = origin
        self._name = notary.name(origin)
        self._nodes: Mapping[tuple[int, int], object] = {}
        self._outside = dict(outside)
        self._peaks: list[bytes] = []
        self._whole = True
        self.size = 0
        self.last_id = 0
        self.number = 0
        self.legacy_to = 0
        self.pending = 0
        self.previous: str | None = None

    def _finding(
        self, message: str, index: int | None = None, row_id: int | None = None
    ) -> Finding:
        return Finding(message, self._origin, index, row_id)

    def check(
        self,
        batches: Sequence[LogBatch],
        events: Sequence[tuple[Any, ...]],
        nodes: Mapping[tuple[int, int], object],
        kept_from: int,
    ) -> Iterator[Finding]:
        """Check some batches that come next.

        Args:
            batches: in order.
            events: the rows behind the last one checked, up to the last batch's last.
            nodes: the kept hashes of the subtrees that they complete, by level and position.
            kept_from: the first leaf that has its bytes.
        """
        at, self._nodes = 0, nodes
        for batch in batches:
            end = at
            while end < len(events) and events[end][_ID] <= batch.last_id:
                end += 1
            yield from self._batch(batch, events[at:end], kept_from)
            at = end

    def _batch(
        self, batch: LogBatch, events: Sequence[tuple[Any, ...]], kept_from: int
    ) -> Iterator[Finding]:
        if batch.first != self.size:
            yield self._gap(batch.first)
        if not self._notary.macs.vouches(batch.mac, *self._notary.batch_words(batch)):
            yield self._finding(
                f"the row of leaves {batch.first} to {batch.first + batch.length - 1}, or its"
                " checkpoint, was edited", batch.first,
            )  # fmt: skip
        hashes = cut_hashes(batch.hashes)
        if batch.length < 1 or len(batch.hashes) != HASH_BYTES * batch.length:
            yield self._finding("its hashes were edited", batch.first)
            hashes = [bytes(HASH_BYTES)] * batch.length
        if batch.leaves is None:
            if batch.first + batch.length > kept_from:
                yield self._finding(
                    f"the bytes of leaves {batch.first} to {batch.first + batch.length - 1} are"
                    " gone, and retention did not drop them", batch.first,
                )  # fmt: skip
            for row in events:
                yield self._finding("retention dropped this event, but it is there", None, row[_ID])
        else:
            yield from self._leaves(batch, hashes, events)
        yield from self._grow(batch, hashes)
        self.last_id = max(self.last_id, batch.last_id)
        if batch.number is not None:
            self.number = batch.number + batch.length - 1

    def _gap(self, first: int) -> Finding:
        found = (
            self._finding(f"leaves {self.size} to {first - 1} are gone", self.size)
            if first > self.size
            else self._finding(f"there is another leaf {first}", first)
        )
        # Nothing can be said of roots until the end: what they are made of is not there.
        self._whole, self.size = False, first
        return found

    def _leaves(
        self, batch: LogBatch, hashes: list[bytes], events: Sequence[tuple[Any, ...]]
    ) -> Iterator[Finding]:
        leaves = batch.leaves.split(b"\n") if isinstance(batch.leaves, bytes) else []
        if len(leaves) != batch.length:
            yield self._finding(
                f"the bytes of leaves {batch.first} to {batch.first + batch.length - 1} were"
                " edited", batch.first,
            )  # fmt: skip
            return
        computed = leaf_hashes(leaves)
        if computed != hashes:
            for index, (one, other) in enumerate(zip(computed, hashes, strict=True), batch.first):
                if one != other:
                    yield self._finding("the leaf does not fit its hash", index)
        if batch.number is None:
            yield from self._special(batch.first, leaves[0])
            for row in events:
                yield self._finding("the event is not in the log", None, row[_ID])
            return
        # The usual case first, at full speed.
        if len(events) == len(leaves):
            fits = self._notary.macs.fits if events[0][_ID] > self.legacy_to else _is_unstamped
            for index, leaf, row in zip(
                range(batch.first, batch.first + batch.length), leaves, events, strict=True
            ):
                if leaf[:-SALTED_BYTES] != event_body(index, row[:-1])[:-1] or not fits(row):
                    break
            else:
                return
        yield from self._compare(batch.first, leaves, events)

    def _compare(
        self, first: int, leaves: list[bytes], events: Sequence[tuple[Any, ...]]
    ) -> Iterator[Finding]:
        """Leaf by leaf, what became of its event."""
        rows = {row[_ID]: row for row in events}
        before = self.last_id
        for index, leaf in enumerate(leaves, first):
            try:
                said = read_leaf(leaf)
                row_id = said["id"]
            except (ValueError, KeyError):
                continue  # its hash says so already
            row = rows.pop(row_id, None) if isinstance(row_id, int) else None
            if row is None:
                yield self._finding("the event was deleted", index, row_id)
                continue
            if row_id < before:
                yield self._finding(
                    "the event stands before those that it came after", index, row_id
                )
            before = row_id
            fits = self._notary.macs.fits(row) if row_id > self.legacy_to else _is_unstamped(row)
            if split_salt(leaf) != _body(index, row) or not fits:
                yield self._finding("the event was edited", index, row_id)
        for row_id in rows:
            yield self._finding("the event is not in the log", None, row_id)

    def _special(self, index: int, leaf: bytes) -> Iterator[Finding]:
        try:
            said = read_leaf(leaf)
        except ValueError:
            return  # its hash says so already
        if said.get("kind") == "missing":
            yield self._finding(
                f"events of the numbers {said.get('first')} to {said.get('last')} were deleted or"
                " edited before they were sealed", index,
            )._replace(noted=True)  # fmt: skip
            if isinstance(last := said.get("last"), int):
                self.number = last
        elif said.get("kind") == "origin" and index == 0:
            self.previous = said.get("previous")
        else:
            yield self._finding("the leaf is of an unknown kind", index)

    def _grow(self, batch: LogBatch, hashes: list[bytes]) -> Iterator[Finding]:
        nodes = grow(self.size, self._peaks, hashes) if self._whole else []
        self.size += batch.length
        if not self._whole:
            return
        for level, position, digest in nodes:
            if self._nodes.get((level, position)) != digest:
                yield self._finding(
                    f"the kept hash of level {level}, position {position} is gone or was edited",
                    position << level,
                )
        root = root_of(self._peaks)
        known = self._outside.pop(self.size, root)
        if known != root:
            yield self._finding(
                f"a checkpoint outside of the database has another root for {self.size} leaves",
                self.size - 1,
            )
        text = Checkpoint(self._name, self.size, root).text()
        if not str(batch.note).startswith(text + "\n"):
            yield self._finding(
                f"leaves up to {self.size - 1} do not fit their checkpoint", batch.first
            )
            # One edit would be found again in every batch behind it.
            self._whole = False

    def end(self, state: LogState | None, strange: Sequence[tuple[int, int]]) -> Iterator[Finding]:
        """What the log's own state says, once all is checked.

        Args:
            state: how far it has come.
            strange: level and position of kept hashes that it cannot have.
        """
        if state is None or not self._notary.knows(state):
            what = "is gone" if state is None else "was edited"
            yield self._finding(f"the row that says how far the log has come {what}")
        elif state.size != self.size:
            yield self._finding(
                f"leaves {self.size} to {state.size - 1} are gone, or this row was turned back"
                if state.size > self.size
                else f"the log is longer than its state, which was turned back to {state.size}",
                min(self.size, state.size),
            )
        else:
            self.number = state.number
        if (
            state is not None
            and state.size == self.size
            and self._whole
            and state.peaks != b"".join(self._peaks)
        ):
            yield self._finding("the log's state does not fit its leaves")
        for size in sorted(self._outside):
            if size > self.size:
                yield self._finding(
                    f"a checkpoint outside of the database has {size} leaves: the last"
                    f" {size - self.size} are lost", self.size,
                )  # fmt: skip
            elif self._whole:
                yield self._finding("a checkpoint outside of the database fits no batch", size - 1)
        for level, position in strange:
            yield self._finding(
                f"there is a hash of level {level}, position {position} too many",
                position << level if 0 <= level < 64 else None,
            )

    def waiting(
        self, events: Sequence[tuple[Any, ...]], written: int, *, last: bool
    ) -> Iterator[Finding]:
        """Events behind the last leaf, which wait to be sealed.

        Args:
            events: their rows, by id.
            written: the last number that was given.
            last: whether there are no more.
        """
        for row in events:
            if row[_ID] <= self.legacy_to and _is_unstamped(row):
                self.pending += 1
            elif not self._notary.macs.fits(row) or row[-2] <= self.number:
                yield self._finding("the event was not written by this software", None, row[_ID])
            else:
                if row[-2] > max(self.number, self.legacy_to) + 1:
                    yield self._finding(
                        f"events of the numbers {max(self.number, self.legacy_to) + 1} to"
                        f" {row[-2] - 1} before it are gone", None, row[_ID],
                    )  # fmt: skip
                self.number = row[-2]
                self.pending += 1
        if last and written > max(self.number, self.legacy_to):
            yield self._finding(
                f"events of the numbers {max(self.number, self.legacy_to) + 1} to {written} are"
                " gone, the last ones"
            )
        if last and written < self.number:
            yield self._finding(f"the number of the last event was turned back to {written}")


def _body(index: int, row: tuple[Any, ...]) -> bytes | None:
    try:
        return event_body(index, row[:-1])
    except (TypeError, ValueError):  # of a type that no event has
        return None


def _is_unstamped(row: tuple[Any, ...]) -> bool:
    # Of a blob and of its base64 a leaf would say the same.
    plain = not any(isinstance(value, bytes) for value in row)
    return row[-1] is None and row[-2] is None and plain
