"""Permission patterns and expressions, against slow oracles that are written another way."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api_key_manager.core import ValidationError
from api_key_manager.core.permissions import (
    MAX_DEPTH,
    MAX_EXPRESSION,
    MAX_GRANTS,
    MAX_NAMES,
    check_grants,
    compile_expression,
    meets,
)

# Every permission of up to five segments over two used letters and one that no pattern names.
WORLD = [p for n in range(1, 6) for p in itertools.product("abz", repeat=n)]
patterns = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4).map(".".join)


def stands_for(pattern: str) -> set[tuple[str, ...]]:
    """All permissions of the small world that a pattern matches."""
    segments = pattern.split(".")
    open_end = segments[-1] == "*"
    found = set()
    for permission in WORLD:
        longer = len(permission) > len(segments) and open_end
        head = permission[: len(segments)]
        if (len(permission) == len(segments) or longer) and all(
            s in ("*", p) for s, p in zip(segments, head, strict=True)
        ):
            found.add(permission)
    return found


@given(patterns, patterns)
@example("*", "a.b.a")
@example("a.*", "a")
@example("*.b", "a.*")
def test_meets_is_a_common_permission(grant: str, wanted: str):
    """A grant meets a wish when some permission is matched by both, whichever holds the stars."""
    assert meets(grant, wanted) is bool(stands_for(grant) & stands_for(wanted))
    assert meets(wanted, grant) is meets(grant, wanted)


@given(st.lists(patterns, max_size=6), patterns)
@example([], "*")
@example(["a.b", "*.a.b"], "a.*.*")
def test_many_grants_are_each_of_them(grants: list[str], wanted: str):
    """Grants that are asked together meet a wish when one of them does on its own."""
    expected = any(stands_for(grant) & stands_for(wanted) for grant in grants)
    assert compile_expression(wanted)(tuple(grants)) is expected
    assert compile_expression([wanted])(tuple(grants)) is expected


@pytest.mark.parametrize(
    ("grant", "wanted", "yes"),
    [
        ("documents.read", "documents.read", True),
        ("documents.*", "documents.read", True),
        ("documents.*", "documents.read.draft", True),
        ("documents.*", "documents", False),
        ("documents.*", "documentsx.read", False),
        ("documents.*.read", "documents.7.read", True),
        ("documents.*.read", "documents.7.8.read", False),
        ("documents.read", "documents.*", True),
        ("documents", "documents.read", False),
        ("Documents.read", "documents.read", False),
        ("*", "anything.at.all", True),
    ],
)
def test_wildcards(grant: str, wanted: str, yes: bool):
    """The documented meaning of a star: segments, never parts of one, and case matters."""
    assert meets(grant, wanted) is yes
    assert compile_expression(wanted)((grant,)) is yes
    assert compile_expression([wanted])((grant,)) is yes


# Expressions are drawn as trees, written down with random spaces, case and parentheses, and the
# parsed text must say what the tree says.
leaves = st.sampled_from(["a", "b.c", "b.*", "x:y-1_2"])
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    ),
    max_leaves=8,
)
RANK = {"or": 0, "and": 1, "not": 2}


def rank(tree) -> int:
    return 3 if isinstance(tree, str) else RANK[tree[0]]


def write(tree, draw) -> str:
    """Text of a tree, with no more parentheses than needed unless the draw puts some more."""
    if isinstance(tree, str):
        text = tree
    else:
        word = draw(st.sampled_from([tree[0], tree[0].upper(), tree[0].title()]))
        parts = [write(part, draw) for part in tree[1:]]
        # `and` and `or` are associative, so only a looser part needs parentheses.
        parts = [
            f"({text})" if rank(part) < rank(tree) else text
            for part, text in zip(tree[1:], parts, strict=True)
        ]
        space = draw(st.sampled_from([" ", "  ", "\t", " \n"]))
        text = (
            f"{word}{space}{parts[0]}" if word.lower() == "not" else f"{space}{word} ".join(parts)
        )
    return f"( {text})" if draw(st.integers(0, 9)) == 0 else text


def says(tree, grants: tuple[str, ...]) -> bool:
    if isinstance(tree, str):
        return any(stands_meet(grant, tree) for grant in grants)
    if tree[0] == "not":
        return not says(tree[1], grants)
    values = [says(part, grants) for part in tree[1:]]
    return all(values) if tree[0] == "and" else any(values)


def stands_meet(grant: str, wanted: str) -> bool:
    # Only b.* is a pattern here.
    if wanted == "b.*":
        return grant.startswith("b.")
    return grant == wanted or (grant == "b.*" and wanted.startswith("b."))


@given(trees, st.lists(st.sampled_from(["a", "b.c", "b.d", "b.*", "x:y-1_2", "q"])), st.data())
def test_grammar(tree, grants: list[str], data: st.DataObject):
    """An expression means what its tree means: not over and over or, parentheses over all."""
    text = write(tree, data.draw)
    assert compile_expression(text)(tuple(grants)) is says(tree, tuple(grants))


@pytest.mark.parametrize(
    ("text", "grants", "yes"),
    [
        ("a or b and c", ("a",), True),
        ("(a or b) and c", ("a",), False),
        ("not a and b", ("b",), True),
        ("not (a and b)", ("b",), True),
        ("not not a", ("a",), True),
        ("a and not a", ("a",), False),
        ("a.and", ("a.and",), True),
        ("android", ("android",), True),
    ],
)
def test_binding(text: str, grants: tuple[str, ...], yes: bool):
    """The cases that a left-to-right reader gets wrong."""
    assert compile_expression(text)(grants) is yes


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "and", "a and", "or a", "not", "a b", "a not b", "(a", "a)", "()", "a..b", ".a",
        "a.", "a*", "*a", "a & b", "a;b", "é", "a\x00", "a and (b or", "not and a", "(a)(b)",
        "a,b", "a" * 129,
    ],
)  # fmt: skip
def test_unreadable(text: str):
    """What cannot be read is refused, never taken for true."""
    with pytest.raises(ValidationError, match="permissions"):
        compile_expression(text)


@given(st.text(alphabet="ab.*() notandr\n\x00é", max_size=40))
def test_any_text_compiles_or_is_refused(text: str):
    """No text makes the parser fail in another way, or answer with anything but a bool."""
    try:
        expression = compile_expression(text)
    except ValidationError:
        return
    assert type(expression(("a",))) is bool


def test_length_is_bounded():
    """1024 characters are read, 1025 are not."""
    text = " or ".join(["a" * 60] * 16)
    compile_expression(text + " " * (MAX_EXPRESSION - len(text)))
    with pytest.raises(ValidationError, match="1024"):
        compile_expression(text + " " * (MAX_EXPRESSION + 1 - len(text)))


def test_names_are_bounded():
    """64 names are read, 65 are not; operators and parentheses do not count."""
    compile_expression(" or ".join(["(not a)"] * MAX_NAMES))
    with pytest.raises(ValidationError, match="64"):
        compile_expression(" or ".join(["a"] * (MAX_NAMES + 1)))


@pytest.mark.parametrize(("opening", "closing"), [("(", ")"), ("not ", "")])
def test_depth_is_bounded(opening: str, closing: str):
    """16 levels are read, 17 are not, so that no text can exhaust the stack."""
    compile_expression(opening * MAX_DEPTH + "a" + closing * MAX_DEPTH)
    with pytest.raises(ValidationError, match="16"):
        compile_expression(opening * (MAX_DEPTH + 1) + "a" + closing * (MAX_DEPTH + 1))


@pytest.mark.parametrize("star", ["", ".*"])
def test_a_name_does_not_walk_the_grants(star: str):
    """Each name costs a step or two however many grants there are, with stars and without."""
    grants = tuple(f"g{i}{star}" for i in range(MAX_GRANTS))
    text = " or ".join(f"n{i}{star}" for i in range(MAX_NAMES))
    expression = compile_expression(text)
    assert not expression(grants)
    lines = 0

    def count(frame, event, arg):
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        expression(grants)
    finally:
        sys.settrace(before)
    assert lines < 30 * MAX_NAMES


def test_lists_need_all():
    """A list is met only when every permission in it is; an empty one asks for nothing."""
    both = compile_expression(["a", "b.c"])
    assert both(("b.*", "a"))
    assert not both(("a",))
    assert not both(())
    assert compile_expression([])(())


@pytest.mark.parametrize("wanted", [None, 5, {"a": 1}, b"a", ["a", 5], [["a"]], ["not"], ["a b"]])
def test_other_wishes_are_refused(wanted: object):
    """Neither text nor a list of permissions: refused."""
    with pytest.raises(ValidationError):
        compile_expression(wanted)


def test_grants_are_cleaned():
    """Order is kept, doubles go."""
    assert check_grants(["b", "a", "b"]) == ("b", "a")
    assert check_grants(()) == ()


@pytest.mark.parametrize(
    "grants",
    ["a", None, {"a"}, [1], [""], ["a.."], ["or"], ["AND"], ["a" * 129], ["a"] * (MAX_GRANTS + 1)],
)
def test_bad_grants(grants: object):
    """No list, no permission or too many: refused, and the message names the field."""
    with pytest.raises(ValidationError, match="permissions"):
        check_grants(grants)
