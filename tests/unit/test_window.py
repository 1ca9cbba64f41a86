"""The window of the last changes, against a model that remembers everything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.cache import Window
from api_key_manager.core.ports import Changed, Reading

KEYS = ("a", "b", "c")


class Model:
    """All changes since the start, and how many of them a window of this size may know."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.known: list[Changed] = []
        self.newest: Changed | None = None

    def start(self, reading: Reading) -> None:
        self.known, self.newest = [], Changed(reading.revision, "", 0)
        self.add(reading.changes)

    def add(self, changes: list[Changed]) -> None:
        self.known = [*self.known, *changes][-self.kept :]
        self.newest = self.known[-1] if self.known else self.newest

    def holds(self, key_id: str, as_of: Changed) -> bool:
        if self.newest is None:
            return False
        if as_of == self.newest:
            return True
        if as_of not in self.known:
            return False
        later = self.known[self.known.index(as_of) + 1 :]
        return all(change.key_id != key_id for change in later)


@st.composite
def stories(draw):
    """Readings of a store that goes on, falls back to an earlier state, or is read anew."""
    steps, past, clock = [], [], 0
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["more", "more", "more", "back", "anew", "pruned"]))
        if kind == "back":
            past = past[: draw(st.integers(0, len(past)))]
        fresh = []
        for key_id in draw(st.lists(st.sampled_from(KEYS), max_size=6)):
            clock += 1
            fresh.append(Changed(len(past) + len(fresh) + 1, key_id, clock))
        past = [*past, *fresh]
        if kind == "more" and steps:
            steps.append(("add", fresh))
        else:
            last = past[-draw(st.integers(1, 20)) :] if kind != "pruned" else []
            steps.append(("start", Reading(len(past), last, complete=False)))
    return steps


@given(stories(), st.integers(1, 8))
def test_window_says_what_a_full_memory_says(story, kept):
    """Whatever was read, in whatever order, a record counts as current exactly when the change as
    of which it was read is known and no later one of its key; as of a lost past it never does."""
    window, model = Window(kept), Model(kept)
    seen = {Changed(0, "", 0)}
    for step, reading in story:
        getattr(window, step)(reading)
        getattr(model, step)(reading)
        seen.update(reading if step == "add" else reading.changes)
        assert window.newest == model.newest
        for as_of in seen | {window.newest}:
            for key_id in KEYS:
                assert window.holds(key_id, as_of) == model.holds(key_id, as_of)


def test_nothing_is_current_before_the_first_reading():
    """A window that has read nothing believes nothing."""
    assert not Window().holds("a", Changed(0, "", 0))


@pytest.mark.parametrize("at", [6, 8])
def test_a_revision_that_another_change_has_now_is_another_past(at):
    """A record read as of a change that was lost is not believed because its revision came
    again."""
    window = Window()
    window.start(Reading(5, [Changed(5, "a", 50)], complete=False))
    assert window.holds("a", Changed(5, "a", 50))
    window.start(Reading(at, [Changed(n, "b", n * 100) for n in range(5, at + 1)], complete=False))
    assert not window.holds("a", Changed(5, "a", 50))


def test_what_fell_out_of_the_window_is_not_believed():
    """A record as of a change that the window no longer reaches back to counts as old, also when
    nothing is known to have happened to its key."""
    window = Window(kept=3)
    changes = [Changed(n, "noise", n) for n in range(1, 6)]
    window.start(Reading(5, changes, complete=False))
    assert not window.holds("a", changes[1])
    assert window.holds("a", changes[2])


def test_memory_is_bounded():
    """However much changes, the window keeps no more than it may, of keys as of changes."""
    window = Window(kept=10)
    window.start(Reading(0, [], complete=False))
    window.add([Changed(n, f"key-{n}", n) for n in range(1, 1000)])
    assert len(window._changes) == len(window._last) == 10
