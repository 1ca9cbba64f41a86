"""An admin who means harm, by the API alone and with the database open as well.

What a token of one environment does not see of others: test_confined_tokens.py. That none mints
beyond itself: test_admin_tokens.py.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.audit_logs import sealed, truncate
from tests.integration.conftest import Api, serving
from tests.integration.places import Place, signed

NOBODY = "nobody-has-this-id"


@pytest.fixture
async def api(either_place: Place) -> AsyncIterator[Api]:
    settings = either_place.settings()
    async with serving(
        DATABASE_URL=settings.DATABASE_URL,
        AKM_MASTER_KEY=settings.AKM_MASTER_KEY,
        AKM_MASTER_KEY_FILE=settings.AKM_MASTER_KEY_FILE,
    ) as api:
        await api.deployment.supervisor.stop()  # what is sealed is when a test says so
        yield api


async def everything(api: Api) -> list[tuple[str, str]]:
    """What the server lets an admin read, with ids that there are."""
    document = (await api("GET", "/openapi.json")).json()
    found = []
    for path in document["paths"]:
        if "get" not in document["paths"][path] or "authorize" in path:
            continue
        found.append(("GET", path.replace("{key_id}", "victim").partition("{")[0]))
    return [*found, ("GET", "/v1/audit/proof?index=1")]


async def test_existing_secrets_are_not_shown(api: Api):
    """Whatever an admin with every scope reads, or changes without a rotation: no secret and no
    token that somebody got before stands in the answer."""
    victims = [
        await api.key(key_id="victim"),
        await api.key(key_id="victim-2", kind="bearer"),
        await api.scoped("validate"),
    ]
    shown = [v.get("token") or v["secret"] for v in victims]
    assert len(shown) == 3
    his = (await api.scoped("admin"))["token"]
    await sealed(api.deployment)
    heard = [(await api(*each, token=his)).text for each in await everything(api)]
    for method, path, body in (
        ("PATCH", "/v1/keys/victim", {"owner": "me"}),
        ("POST", "/v1/keys/victim/revoke", {}),
        ("POST", "/v1/keys/revoke", {"kind": "bearer", "dry_run": True}),
        ("DELETE", "/v1/keys/victim-2", None),
    ):
        answer = await api(method, path, body, token=his)
        assert answer.status_code < 300, answer.text
        heard.append(answer.text)
    assert len(heard) > 10
    assert [secret for secret in shown for text in heard if secret in text] == []


async def deeds(api: Api, his: str) -> dict[str, dict[str, Any]]:
    """Everything by which an admin changes something, and the events that he does not want."""
    key = await _done(api, "POST", "/v1/keys", {"key_id": "backdoor"}, his)
    assert key["key_id"] == "backdoor"
    await _done(api, "PATCH", "/v1/keys/backdoor", {"permissions": ["*"]}, his)
    await _done(api, "POST", "/v1/keys/backdoor/rotate", {}, his)
    await _done(api, "POST", "/v1/keys/backdoor/revoke", {"reason": "done"}, his)
    await _done(api, "POST", "/v1/keys/revoke", {"owner": "theirs"}, his)
    await _done(api, "DELETE", "/v1/keys/backdoor", None, his)
    token = await _done(api, "POST", "/v1/tokens", {"scopes": ["admin"]}, his)
    await _done(api, "POST", f"/v1/tokens/{token['key_id']}/rotate", {}, his)
    await _done(api, "DELETE", f"/v1/tokens/{token['key_id']}", None, his)
    events = (await api("GET", "/v1/audit?limit=100&order=asc")).json()["items"]
    return {event["action"]: event for event in events}


async def _done(api: Api, method: str, path: str, body: Any, by: str) -> dict[str, Any]:
    answer = await api(method, path, body, token=by)
    assert answer.status_code < 300, answer.text
    told: dict[str, Any] = answer.json() if answer.content else {}
    return told


async def test_everything_is_in_the_log(api: Api):
    """Each change that he makes is an event under his token's id; he can't delete any by the API,
    nor write one under another name."""
    await api.key(owner="theirs")
    his = await api.scoped("admin")
    seen = await deeds(api, his["token"])
    wanted = {
        "key_created", "key_updated", "key_rotated", "key_revoked", "key_deleted",
        "token_created", "token_rotated", "token_revoked",
    }  # fmt: skip
    by_him = {action for action, event in seen.items() if event["actor"] == his["key_id"]}
    assert by_him >= wanted
    for method in ("DELETE", "PATCH", "POST", "PUT"):
        answer = await api(method, "/v1/audit", token=his["token"])
        assert answer.status_code in (404, 405), method


async def test_log_convicts_him(api: Api, either_place: Place, tmp_path):
    """With the database open as well he removes what he did, and takes the log back to before it,
    without a gap. A checkpoint that somebody else has kept does not fit any more."""
    deployment, place = api.deployment, either_place
    await api.key(key_id="victim")
    await sealed(deployment)
    assert deployment.sealer is not None
    before = deployment.sealer.state
    his = await api.scoped("admin")
    await deeds(api, his["token"])
    await sealed(deployment)
    kept = tmp_path / "kept"
    kept.write_text((await api("GET", "/v1/audit/checkpoint")).text)
    proof = (await api("GET", "/v1/audit/proof?index=4")).json()
    assert json.loads(proof["leaf"])["actor"] == his["key_id"]
    truncate(place, before)
    done = place.akm("audit", "verify")
    assert done.returncode == 0, done.stdout
    done = place.akm("audit", "verify", "--checkpoint", str(kept))
    assert done.returncode == 1
    assert "are lost" in done.stdout


async def test_no_unknown_id_is_told_from_a_foreign_one(api: Api):
    """To a token of one environment a key of another one and no key at all are the same."""
    await api.key(key_id="foreign", environment="there")
    his = (await api.scoped("admin", environment="here"))["token"]
    answers = []
    for key_id in ("foreign", NOBODY):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/revoke"), ("POST", "/rotate")):
            body = {} if method == "POST" else None
            answer = await api(method, f"/v1/keys/{key_id}{path}", body, token=his)
            answers.append((answer.status_code, answer.json()["detail"].replace(key_id, "ID")))
    assert answers[:4] == answers[4:]
    assert {status for status, _ in answers} == {404}
    verdict = await api.deployment.manager.verify(
        **signed(api.deployment.manager, await api.key(key_id="mine", environment="here"))
    )
    assert verdict
