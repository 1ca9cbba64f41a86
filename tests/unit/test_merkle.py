"""The Merkle tree: against outside vectors, and every proof of every small tree."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_key_manager.audit.merkle import (
    EMPTY_ROOT,
    Span,
    consistency,
    fold,
    grow,
    inclusion,
    leaf_hashes,
    prove,
    root_of,
    verify_consistency,
    verify_inclusion,
    whole_spans,
)

LEAVES = leaf_hashes(str(number).encode() for number in range(600))


def root(leaves: list[bytes]) -> bytes:
    """The root as RFC 6962 defines it, word by word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return fold([root(leaves[:split]), root(leaves[split:])])


def subtree(span: Span) -> bytes:
    return root(LEAVES[span.position << span.level : (span.position + 1) << span.level])


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def test_inclusion_vectors(vectors):
    """98 of 98 cases of transparency-dev's test data."""
    cases = vectors("rfc6962-merkle-proofs.json")["inclusion"]
    assert len(cases) == 98
    for case in cases:
        right = verify_inclusion(
            decoded(case["leafHash"]), case["leafIdx"], case["treeSize"],
            [decoded(item) for item in case["proof"] or []], decoded(case["root"]),
        )  # fmt: skip
        assert right is not case["wantErr"], case["name"]


def test_consistency_vectors(vectors):
    """98 of 98 cases of the same."""
    cases = vectors("rfc6962-merkle-proofs.json")["consistency"]
    assert len(cases) == 98
    for case in cases:
        right = verify_consistency(
            case["size1"], case["size2"], [decoded(item) for item in case["proof"] or []],
            decoded(case["root1"]), decoded(case["root2"]),
        )  # fmt: skip
        assert right is not case["wantErr"], case["name"]


def test_every_proof_of_small_trees():
    """Each leaf of each tree up to 40 leaves is proved, and each tree as the start of each."""
    roots = [root(LEAVES[:size]) for size in range(41)]
    for size in range(1, 41):
        for index in range(size):
            proof = prove(inclusion(index, size), subtree)
            assert verify_inclusion(LEAVES[index], index, size, proof, roots[size])
            assert not verify_inclusion(LEAVES[index + 1], index, size, proof, roots[size])
            assert not verify_inclusion(LEAVES[index], index, size, proof, roots[size - 1])
        for old in range(1, size + 1):
            proof = prove(consistency(old, size), subtree)
            assert verify_consistency(old, size, proof, roots[old], roots[size])
            assert old == size or not verify_consistency(
                old, size, proof, roots[old - 1], roots[size]
            )


@given(st.lists(st.integers(0, 150), max_size=6))
def test_growth_in_any_pieces(pieces):
    """However the leaves come, the root is that of all of them, and 256 of them make a node."""
    size, peaks, nodes = 0, [], []
    for piece in pieces:
        nodes += grow(size, peaks, LEAVES[size : size + piece])
        size = min(len(LEAVES), size + piece)
        assert root_of(peaks) == root(LEAVES[:size])
    assert nodes == [(8, at, root(LEAVES[at * 256 : (at + 1) * 256])) for at in range(size // 256)]


@given(st.integers(1, 10**7), st.data())
def test_proofs_of_large_trees_need_few_subtrees(size, data):
    """Any leaf among ten millions is proved by some dozens of complete subtrees, disjoint from it
    and, with it, of the whole tree."""
    index = data.draw(st.integers(0, size - 1))
    spans = [span for part in inclusion(index, size) for span in whole_spans(*part)]
    assert len(spans) < 64
    covered = sorted((s.position << s.level, (s.position + 1) << s.level) for s in spans)
    at = 0
    for start, end in sorted([*covered, (index, index + 1)]):
        assert start == at
        at = end
    assert at == size


@pytest.mark.parametrize("asked", [(0, 0), (5, 5), (-1, 5)])
def test_no_proof_of_what_is_not_there(asked):
    """An index outside of the tree is refused."""
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion(*asked)
