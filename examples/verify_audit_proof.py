"""Verify a proof of the audit log with nothing of its maker's: RFC 9162 and C2SP signed notes.

python verify_audit_proof.py proof.json [verifier-key]
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def check(fits, otherwise):
    if not fits:
        raise SystemExit(f"NOT PROVED: {otherwise}")


def open_note(note, verifier_key):
    """The size and root of a checkpoint, if its signature by this key is right."""
    name, key_id, key = verifier_key.split("+", 2)
    text, signatures = note.split("\n\n", 1)
    public = base64.b64decode(key)[1:]
    lines = [line.split(" ") for line in signatures.splitlines()]
    signed = [base64.b64decode(line[2]) for line in lines if line[:2] == ["\u2014", name]]
    (signature,) = [raw[4:] for raw in signed if raw[:4].hex() == key_id]
    Ed25519PublicKey.from_public_bytes(public).verify(signature, text.encode() + b"\n")
    origin, size, root = text.split("\n")[:3]
    check(origin == name, "the checkpoint is of another log")
    return int(size), base64.b64decode(root)


def walk(at, last, old, new, path):
    """The roots that a path leads to: of the part left of the leaf, and of everything."""
    for sibling in path:
        check(last > 0, "the proof is too long")
        if at & 1 or at == last:
            old, new = join(sibling, old), join(sibling, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = join(new, sibling)
        at, last = at >> 1, last >> 1
    check(last == 0, "the proof is too short")
    return old, new


def join(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def verify(proof, verifier_key):
    size, root = open_note(proof["checkpoint"], verifier_key)
    path = [base64.b64decode(item) for item in proof["hashes"]]
    if "old_checkpoint" in proof:
        old_size, old_root = open_note(proof["old_checkpoint"], verifier_key)
        check(0 < old_size <= size, "the older checkpoint is the larger one")
        at, last = old_size - 1, size - 1
        while at & 1:
            at, last = at >> 1, last >> 1
        first = old_root if old_size & (old_size - 1) == 0 else path.pop(0)
        check(walk(at, last, first, first, path) == (old_root, root), "the log was rewritten")
        return f"the log of {old_size} leaves is the start of that of {size}"
    leaf = base64.b64decode(proof["leaf_hash"])
    if proof["leaf"] is not None:
        leaf = hashlib.sha256(b"\x00" + proof["leaf"].encode()).digest()
    check(0 <= proof["index"] < size, "there is no such leaf")
    check(walk(proof["index"], size - 1, leaf, leaf, path)[1] == root, "the leaf is not in the log")
    return f"leaf {proof['index']} is in the log of {size} leaves: {proof['leaf']}"


if __name__ == "__main__":
    proof = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(verify(proof, sys.argv[2] if len(sys.argv) > 2 else proof["verifier_key"]))
