"""What several worker processes counted, as one.

Each keeps one file in a folder of theirs, written whole and renamed into place. A counter in it
goes on from what an earlier process of the same number left there, so that a worker that died
stays counted. Who is scraped writes its own file first: no number is shown that is not in a file,
and so none goes down when the process that showed it is killed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from api_key_manager.telemetry.catalogue import METRICS, Readings, Series

__all__ = ["Board", "label_worker"]

_log = logging.getLogger(__name__)
_FRESH_SECONDS: Final = 10.0


class _File(msgspec.Struct):
    """What a worker publishes; ``at`` on a clock that all of them share, 0 after its end."""

    at: float
    readings: Readings


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_File).decode


class Board:
    """Where the numbers of all workers hang.

    Args:
        number: of this worker, from 1; only one process at a time may have it.
        count: how many workers there are.
        folder: private to them.
        clock: seconds that never step, the same in every process of this machine.
    """

    def __init__(
        self, number: int, count: int, folder: Path, *, clock: Callable[[], float]
    ) -> None:
        self._number = number
        self._paths = {other: folder / f"metrics-{other}" for other in range(1, count + 1)}
        self._clock = clock
        # Kept, so that a file that cannot be read for once takes nothing away.
        self._latest: dict[int, _File] = {}
        # A thread whose caller was cancelled may still be at it.
        self._lock = threading.Lock()
        self._read(number)
        before = self._latest.get(number)
        self._before = {} if before is None else _counters(before.readings)

    def exchange(self, own: Readings, *, ended: bool = False) -> Readings:
        """Publish the own numbers, and give those of all.

        Args:
            own: of this process, since it started.
            ended: whether these are its last.

        Blocks on the disk. A file that cannot be written is logged; the numbers are right still,
        where they are asked of this process.
        """
        with self._lock:
            whole = _add(_counters(own), self._before)
            whole.update({n: s for n, s in own.items() if not _lasts(n) and not ended})
            self._latest[self._number] = file = _File(0.0 if ended else self._clock(), whole)
            path = self._paths[self._number]
            try:
                new = path.with_suffix(".new")
                new.write_bytes(_encode(file))
                new.replace(path)
            except OSError as error:
                _log.warning("the metrics cannot be shared with other workers: %s", error)
            for number in self._paths:
                if number != self._number:
                    self._read(number)
            return self._together(own)

    def _read(self, number: int) -> None:
        try:
            self._latest[number] = _decode(self._paths[number].read_bytes())
        except FileNotFoundError:
            return  # it has not begun yet
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("the metrics of worker %d cannot be read: %s", number, error)

    def _together(self, own: Readings) -> Readings:
        oldest = self._clock() - _FRESH_SECONDS
        total: Readings = {n: s for n, s in own.items() if METRICS[n].across == "own"}
        for number in self._paths:
            file = self._latest.get(number, _File(0.0, {}))
            alive = file.at > oldest
            shown = {n: s for n, s in file.readings.items() if _lasts(n) or alive}
            if not alive:
                shown["akm_ready"] = {(): [0]}
            total = _add(total, label_worker(shown, number))
        return {name: total[name] for name in METRICS if name in total}


def label_worker(readings: Readings, number: int) -> Readings:
    """The same, with the worker's number where each worker has a series of its own; without what
    only the answering one says."""
    label = (str(number),)
    shown: Readings = {}
    for name, series in readings.items():
        across = METRICS[name].across
        if across == "worker":
            shown[name] = {(*where, *label): value for where, value in series.items()}
        elif across == "sum":
            shown[name] = series
    return shown


def _lasts(name: str) -> bool:
    """Whether it stays true after the process has ended."""
    metric = METRICS[name]
    return metric.kind != "gauge" and metric.across == "sum"


def _counters(readings: Readings) -> Readings:
    return {name: series for name, series in readings.items() if _lasts(name)}


def _add(one: Readings, other: Readings) -> Readings:
    total = {name: dict(series) for name, series in one.items()}
    for name, series in other.items():
        into: Series = total.setdefault(name, {})
        for where, values in series.items():
            known = into.get(where)
            into[where] = (
                values if known is None else [a + b for a, b in zip(known, values, strict=True)]
            )
    return total
