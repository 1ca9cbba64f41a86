"""What becomes of events that wait: pure, from what was seen of the log to what is added to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from api_key_manager.audit.checkpoint import Checkpoint, Signer, Verifier, read_text
from api_key_manager.audit.leaf import (
    EventMacs,
    event_body,
    missing_leaf,
    new_salts,
    origin_leaf,
    read_leaf,
    salted,
)
from api_key_manager.audit.merkle import HASH_BYTES, Node, grow, leaf_hashes, root_of
from api_key_manager.core.exceptions import ValidationError
from api_key_manager.core.sealed import LogBatch, LogState

__all__ = ["Addition", "Found", "LogKeys", "Notary", "Run"]

_STATE: Final = "akm-log-state-1"
_BATCH: Final = "akm-log-batch-1"


class LogKeys(NamedTuple):
    """The keys of a log: 32 bytes for MACs, and the 32 bytes of an Ed25519 private key."""

    mac: bytes
    sign: bytes

    def __repr__(self) -> str:
        return "LogKeys()"


class Addition(NamedTuple):
    """A batch with what it completes, and the log's state behind it."""

    state: LogState
    batch: LogBatch
    nodes: list[Node]


class Run(NamedTuple):
    """Events to be sealed at once: their numbers follow each other."""

    number: int
    rows: list[tuple[Any, ...]]


class Found(NamedTuple):
    """What is next: a run of genuine events, or numbers without any, or nothing.

    ``wrong`` are the ids of rows that were not written by us, or not as they are; ``last_id`` is
    that of the last row that was looked at.
    """

    run: Run | None
    missing: tuple[int, int] | None
    wrong: list[int]
    last_id: int | None


class Notary:
    """Makes batches and vouches for them.

    Args:
        keys: of the log.
        database: the database's origin, which the log is named after.
    """

    def __init__(self, keys: LogKeys, database: str) -> None:
        self.macs = EventMacs(keys.mac)
        self._signer = Signer(keys.sign)
        self._database = database

    def name(self, origin: int) -> str:
        """The name of a log: the first line of its checkpoints."""
        return f"api-key-manager-pro/{self._database}/{origin}"

    def verifier(self, name: str) -> Verifier:
        """Who checks the checkpoints of a log."""
        return self._signer.verifier(name)

    def read(self, note: str) -> tuple[int, int] | None:
        """Which log of this database a checkpoint is of, and its size; ``None`` if it is of none,
        or not signed by us."""
        try:
            name = read_text(note).origin
            start, _, number = name.rpartition("/")
            # First, since the signature takes a hundred times as long.
            if start != self.name(0)[:-2] or re.fullmatch("[1-9][0-9]{0,18}", number) is None:
                return None
            checkpoint = self.verifier(name).open(note)
        except ValidationError:
            return None
        return int(number), checkpoint.size

    def is_named_in(self, note: str) -> bool:
        """Whether a note, signed or not, is meant to be a checkpoint of this database."""
        return note.startswith(self.name(0)[:-1])

    def vouched(self, state: LogState) -> LogState:
        """A state with its MAC."""
        return state._replace(mac=self.macs.of(_STATE, *state[:7], state.peaks.hex()))

    def knows(self, state: LogState) -> bool:
        """Whether a state is one that we wrote."""
        peaks: object = state.peaks  # an editor may have put text there
        return isinstance(peaks, bytes) and self.macs.vouches(
            state.mac, _STATE, *state[:7], peaks.hex()
        )

    def batch_mac(self, batch: LogBatch) -> bytes:
        """The MAC of a batch but for its leaves, which its checkpoint covers. Quicker to compare
        than the checkpoint's signature."""
        return self.macs.of(*self.batch_words(batch))

    @staticmethod
    def batch_words(batch: LogBatch) -> tuple[Any, ...]:
        """What that MAC covers."""
        return (_BATCH, *batch[:6], batch.note)

    def previous(self, first: LogBatch) -> str | None:
        """The checkpoint that a log cites, by its first batch; ``None`` when it cites none, or was
        edited."""
        leaf: object = first.leaves
        if not isinstance(leaf, bytes) or leaf_hashes([leaf]) != [first.hashes]:
            return None
        if not self.macs.vouches(first.mac, *self.batch_words(first)):
            return None
        try:
            cited = read_leaf(leaf).get("previous")
        except ValueError:
            return None
        return cited if isinstance(cited, str) else None

    def start(
        self, origin: int, previous: str | None, at: int, *, number: int, row_id: int,
        legacy_to: int,
    ) -> Addition:  # fmt: skip
        """The first leaf of a log.

        Args:
            origin: which log of this database it is.
            previous: the last checkpoint before it, as far as anybody remembers.
            at: in microseconds.
            number: of the last event that is not for it.
            row_id: of that event.
            legacy_to: the last event without a MAC.
        """
        name = self.name(origin)
        state = LogState(origin, name, 0, number, row_id, legacy_to, 0, b"")
        return self._add(state, [origin_leaf(name, previous, at)], None, number, row_id, at)

    def find(
        self, state: LogState, rows: Sequence[tuple[Any, ...]], written: int, *, whole: bool
    ) -> Found:
        """What to seal next.

        Args:
            state: of the log.
            rows: of ``audit_events`` behind the last one that is sealed, by id.
            written: the last number that was given, seen before the rows were.
            whole: whether there are no more rows.
        """
        last_id = rows[-1][0] if rows else None
        fits, legacy_to = self.macs.fits_fresh, state.legacy_to
        old: list[tuple[Any, ...]] = []
        genuine: dict[int, tuple[Any, ...]] = {}
        wrong: list[int] = []
        for row in rows:
            if row[0] <= legacy_to and row[-1] is None and row[-2] is None:
                old.append(row)
            elif fits(row) and row[-2] > state.number and row[-2] not in genuine:
                genuine[row[-2]] = row
            else:
                wrong.append(row[0])
        if old:
            return Found(self._legacy_run(old), None, wrong, last_id)
        expected = max(state.number, legacy_to) + 1
        if expected in genuine:
            number = expected
            while number in genuine:
                number += 1
            run = [genuine[n] for n in range(expected, number)]
            wrong += [row[0] for before, row in pairwise(run) if row[0] < before[0]]
            return Found(Run(expected, run), None, wrong, last_id)
        if genuine:
            return Found(None, (expected, min(genuine) - 1), wrong, last_id)
        if whole and written >= expected:
            return Found(None, (expected, written), wrong, last_id)
        return Found(None, None, wrong, last_id)

    @staticmethod
    def _legacy_run(rows: list[tuple[Any, ...]]) -> Run:
        first = rows[0][0]
        run = [row for at, row in enumerate(rows) if row[0] == first + at]
        return Run(first, run)

    def seal(self, state: LogState, run: Run, at: int) -> Addition:
        """The batch of a run of events."""
        rows = run.rows
        bodies = [event_body(index, row[:-1]) for index, row in enumerate(rows, state.size)]
        leaves = [
            salted(body, salt) for body, salt in zip(bodies, new_salts(len(rows)), strict=True)
        ]
        row_id = max(row[0] for row in rows)
        return self._add(state, leaves, run.number, run.number + len(rows) - 1, row_id, at)

    def note_missing(self, state: LogState, first: int, last: int, at: int) -> Addition:
        """The batch that says which numbers have no event."""
        leaf = missing_leaf(state.size, first, last, at)
        return self._add(state, [leaf], None, last, state.row_id, at)

    def _add(
        self, state: LogState, leaves: list[bytes], number: int | None, last: int, row_id: int,
        at: int,
    ) -> Addition:  # fmt: skip
        peaks = cut_hashes(state.peaks)
        hashes = leaf_hashes(leaves)
        nodes = grow(state.size, peaks, hashes)
        size, length = state.size + len(leaves), len(leaves)
        text = Checkpoint(state.name, size, root_of(peaks)).text()
        note = self._signer.sign(state.name, text)
        batch = LogBatch(
            state.origin, state.size, length, number, row_id, at, b"".join(hashes), note, b"",
            b"\n".join(leaves),
        )  # fmt: skip
        batch = batch._replace(mac=self.batch_mac(batch))
        row_id = max(row_id, state.row_id)
        new = state._replace(size=size, number=last, row_id=row_id, peaks=b"".join(peaks))
        return Addition(self.vouched(new), batch, nodes)


def cut_hashes(joined: bytes) -> list[bytes]:
    """Hashes that stand behind each other."""
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]
