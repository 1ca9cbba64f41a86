"""Proofs by API and command line, and what an outsider makes of them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from api_key_manager.audit.checkpoint import Verifier
from tests.conftest import ROOT
from tests.integration.audit_logs import filled, sealed
from tests.integration.conftest import serving
from tests.integration.places import Place

SCRIPT = ROOT / "examples" / "verify_audit_proof.py"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def outsider(folder: Path, proof: object, *key: str) -> subprocess.CompletedProcess[str]:
    """Somebody who has the proof and the script, and nothing else."""
    file = folder / "proof.json"
    file.write_text(json.dumps(proof), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(file), *key],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_script_is_short_and_imports_nothing_of_ours():
    """Some fifty lines of code, the standard library and `cryptography`."""
    text = SCRIPT.read_text(encoding="utf-8")
    assert "api_key_manager" not in text
    code = [line for line in text.split('"""')[2].splitlines() if line.strip()]
    assert len(code) < 75


async def test_outsider_verifies_what_the_command_line_proves(place, tmp_path):
    """Every kind of proof of `akm audit prove` verifies offline; a changed one does not."""
    async with filled(place):
        pass
    for asked in (["0"], ["1"], ["280"], ["--id", "7"], ["--from", "2"], ["3", "--size", "9"]):
        done = place.akm("audit", "prove", *asked)
        assert done.returncode == 0, done.stderr
        proof = json.loads(done.stdout)
        said = outsider(tmp_path, proof)
        assert said.returncode == 0, said.stderr
        key = proof["verifier_key"]
        assert outsider(tmp_path, proof, key).returncode == 0
        another = f"{key[:-4]}AAA="
        assert outsider(tmp_path, proof, another).returncode != 0
        for member in ("hashes", "checkpoint", "leaf", "index", "old_checkpoint"):
            if not proof.get(member):
                continue
            changed = {**proof, member: spoiled(proof[member])}
            assert outsider(tmp_path, changed).returncode != 0, member
    done = place.akm("audit", "prove", "100000")
    assert done.returncode == 1
    assert "no such leaf" in done.stderr


def spoiled(value: object) -> object:
    if isinstance(value, list):
        return [base64.b64encode(bytes(32)).decode(), *value[1:]]
    if isinstance(value, int):
        return value + 1
    text = str(value)
    return text.replace("1", "2", 1) if "1" in text else text.replace("a", "b", 1)


async def test_verify_by_command_line(place, tmp_path):
    """Exit code 0 and a line when all fits, 1 and the place when not; JSON on demand."""
    async with filled(place):
        pass
    done = place.akm("audit", "verify")
    assert done.returncode == 0
    assert "and all fit" in done.stdout
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text(json.loads(place.akm("audit", "prove", "0").stdout)["checkpoint"])
    assert place.akm("audit", "verify", "--checkpoint", str(checkpoint)).returncode == 0
    place.sql("UPDATE audit_events SET actor = 'x' WHERE id = 5")
    done = place.akm("audit", "verify")
    assert done.returncode == 1
    assert "log 1, index 5, event id 5: the event was edited" in done.stdout
    done = place.akm("audit", "verify", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["findings"] == [
        {"message": "the event was edited", "origin": 1, "leaf": 5, "row_id": 5, "noted": False}
    ]
    empty = tmp_path / "empty"
    empty.write_text("nothing")
    assert place.akm("audit", "verify", "--checkpoint", str(empty)).returncode == 2


async def test_api(tmp_path):
    """The checkpoint verifies under the key in its header, and what is asked for badly is named."""
    async with serving(DATABASE_URL=f"sqlite:///{tmp_path}/data/akm.db") as api:
        await api.key(key_id="k")
        await sealed(api.deployment)
        answer = await api("GET", "/v1/audit/checkpoint")
        assert answer.headers["content-type"].startswith("text/plain")
        known = Verifier.read(answer.headers["x-verifier-key"]).open(answer.text)
        event = (await api("GET", "/v1/audit?key_id=k")).json()["items"][0]
        proof = (await api("GET", f"/v1/audit/proof?id={event['id']}")).json()
        assert (proof["index"], proof["size"]) == (event["index"], known.size)
        assert proof == (await api("GET", f"/v1/audit/proof?index={event['index']}")).json()
        assert json.loads(proof["leaf"])["key_id"] == "k"
        for query in ("", "?index=1&id=1", "?from=0", "?index=-1", "?index=x", "?other=1"):
            answer = await api("GET", f"/v1/audit/proof{query}")
            assert answer.status_code == 422, query
        for name in ("index", "id", "from", "log", "size"):
            for number in (-1, 2**63, 10**20):
                asked = {"index": 0, name: number} if name in ("log", "size") else {name: number}
                query = "&".join(f"{key}={value}" for key, value in asked.items())
                answer = await api("GET", f"/v1/audit/proof?{query}")
                assert (answer.status_code, answer.json()["field"]) == (422, name), query
        unknown = ("index=9999", "id=9999", "from=2&log=7", "index=0&size=77", "index=0&log=7")
        for query in unknown:
            answer = await api("GET", f"/v1/audit/proof?{query}")
            assert answer.status_code == 404, query


async def test_damaged_log_gives_no_proof(tmp_path):
    """What an editor did to hashes is no proof that does not verify, but a refusal."""
    place = Place(tmp_path)
    async with filled(place):
        pass
    place.sql("UPDATE audit_batches SET hashes = zeroblob(length(hashes)) WHERE count > 200")
    done = place.akm("audit", "prove", "280")
    assert done.returncode == 1
    assert "leaf" not in done.stdout


async def test_memory_has_no_log(tmp_path):
    """Keys in memory say clearly that there is nothing to prove."""
    async with serving() as api:
        for path in ("checkpoint", "proof?index=0"):
            answer = await api("GET", f"/v1/audit/{path}")
            assert answer.status_code == 404
            assert "no transparency log" in answer.json()["detail"]
    done = Place(tmp_path).akm("audit", "verify", DATABASE_URL="memory://")
    assert done.returncode == 2
    assert "memory" in done.stderr
