"""What drives each endpoint and each command in the hygiene run: one line each, or more.

`test_hygiene` fails where an operation of the OpenAPI document or a command has no line here. In
texts, ``{name}`` stands for what the run knows by that name: the secrets that it made up or was
given (``secret``, ``token``, …), ids, and a fresh ``nonce`` and ``now``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

__all__ = ["COMMANDS", "ENDPOINTS", "Ask", "Run"]


_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Ask(NamedTuple):
    """A request: what it sends, and what it may show.

    ``keep`` names fields of the answer to be known by another name afterwards; what is kept out of
    ``secret`` or ``token`` is a secret that this answer, and no other, shows. ``token``: who asks.
    """

    status: int = 200
    path: Mapping[str, str] = _NOTHING
    query: str = ""
    body: Any = None
    headers: Mapping[str, str] = _NOTHING
    keep: Mapping[str, str] = _NOTHING
    token: str = "{admin}"


_NEW: Final = {"metadata": {"plan": "basic"}, "owner": "acme", "permissions": ["a.b"]}

# In this order: what is created first is used afterwards.
ENDPOINTS: Final[dict[str, list[Ask]]] = {
    # Before all else, so that it hears of all else.
    "POST /v1/webhooks": [
        Ask(201, body={"url": "{receiver}"}, keep={"id": "hook", "secret": "hook secret"}),
        Ask(
            201,
            body={"url": "{receiver}", "types": ["key.expired"], "description": "pager"},
            headers={"Idempotency-Key": "hook once"},
            keep={"id": "idle hook", "secret": "idle secret"},
        ),
        Ask(
            201,
            body={"url": "{receiver}", "types": ["key.expired"], "description": "pager"},
            headers={"Idempotency-Key": "hook once"},
            keep={"secret": "idle secret"},
        ),
        Ask(422, body={"url": "https://user:{own}@a.example/"}),
        Ask(422, body={"url": "{receiver}", "secret": "{hook secret}"}),
        Ask(422, body={"url": "{receiver}", "description": "{hook secret}"}),
    ],
    "POST /v1/keys": [
        Ask(201, body=_NEW, keep={"key_id": "signed", "secret": "minted"}),
        Ask(201, body={**_NEW, "kind": "bearer"}, keep={"key_id": "bearer", "token": "token"}),
        Ask(201, body={"key_id": "own", "secret": "{own}"}, keep={"secret": "own"}),
        Ask(409, body={"key_id": "own", "secret": "{own}"}),
        Ask(
            201,
            body={"kind": "bearer"},
            headers={"Idempotency-Key": "once"},
            keep={"key_id": "again", "token": "token again"},
        ),
        Ask(
            201,
            body={"kind": "bearer"},
            headers={"Idempotency-Key": "once"},
            keep={"token": "token again"},
        ),
        Ask(422, body={}, headers={"Idempotency-Key": "{token}"}),
        Ask(422, body={"kind": "bearer", "secret": "{own}"}),
        Ask(422, body={"metadata": {"note": "{token}"}, "kind": "{own}"}),
    ],
    "GET /v1/keys": [Ask(), Ask(422, query="limit={token}")],
    "GET /v1/keys/{key_id}": [
        Ask(path={"key_id": "{signed}"}),
        Ask(422, path={"key_id": "{token}"}),
    ],
    "PATCH /v1/keys/{key_id}": [
        Ask(path={"key_id": "{signed}"}, body={"owner": "other"}),
        Ask(422, path={"key_id": "{signed}"}, body={"owner": ["{minted}"]}),
    ],
    "POST /v1/keys/{key_id}/rotate": [
        Ask(path={"key_id": "{signed}"}, body={"overlap_seconds": 60}, keep={"secret": "second"}),
        Ask(path={"key_id": "{again}"}, keep={"token": "rotated token"}),
    ],
    "GET /v1/keys/{key_id}/versions": [Ask(path={"key_id": "{signed}"})],
    "POST /v1/validate": [
        Ask(body={"token": "{token}"}),
        Ask(body={"token": "{token}x"}),
        Ask(body={"key": "own", "signature": "{signature}", "timestamp": "{now}"}),
        Ask(body={"key": "own", "signature": "{static}"}),
        Ask(body={"key": "own", "signature": "{own}"}),
        Ask(body={"key": "{token}", "signature": "0" * 64}),
        Ask(body={"token": "{rotated token}"}, token="{wide}"),
        Ask(422, body={"token": ["{token}"]}),
        Ask(401, body={"token": "{token}"}, token="{token}"),
    ],
    "POST /v1/validate/batch": [
        Ask(body={"validations": [{"token": "{token}"}, {"token": "{token}y"}]}),
        Ask(422, body={"validations": "{token}"}),
    ],
    "GET /v1/authorize": [
        Ask(headers={"X-Api-Key": "{token}"}, token=""),
        Ask(401, headers={"X-Api-Key": "{token}z"}, token=""),
        Ask(401, headers={"X-Api-Key": "{token}"}, query="api_key={token}"),
    ],
    "GET /v1/authorize/{permissions}": [
        Ask(path={"permissions": "a.b"}, headers={"X-Api-Key": "{token}"}, token=""),
        Ask(403, path={"permissions": "c"}, headers={"X-Api-Key": "{token}"}, token=""),
    ],
    "POST /v1/tokens": [
        Ask(201, body={"scopes": ["validate"]}, keep={"key_id": "token id", "token": "narrow"}),
        Ask(422, body={"scopes": ["{narrow}"]}),
        Ask(403, body={"scopes": ["admin"]}, token="{narrow}"),
    ],
    "GET /v1/tokens": [Ask()],
    "POST /v1/tokens/{key_id}/rotate": [
        Ask(path={"key_id": "{token id}"}, keep={"token": "narrow rotated"}),
        Ask(422, path={"key_id": "{token id}"}, body={"overlap_seconds": "{narrow}"}),
    ],
    "DELETE /v1/tokens/{key_id}": [Ask(204, path={"key_id": "{token id}"})],
    "GET /v1/webhooks": [Ask()],
    "GET /v1/webhooks/{webhook_id}": [
        Ask(path={"webhook_id": "{hook}"}),
        Ask(404, path={"webhook_id": "{token}"}),
    ],
    "PATCH /v1/webhooks/{webhook_id}": [
        Ask(path={"webhook_id": "{hook}"}, body={"description": "pager"}),
        Ask(422, path={"webhook_id": "{hook}"}, body={"url": "https://a.example/{token}"}),
        Ask(422, path={"webhook_id": "{hook}"}, body={"description": "{token}"}),
        Ask(422, path={"webhook_id": "{hook}"}, body={"types": ["{token}"]}),
    ],
    "POST /v1/webhooks/{webhook_id}/test": [
        Ask(path={"webhook_id": "{hook}"}, keep={"id": "delivery"})
    ],
    "POST /v1/webhooks/{webhook_id}/rotate-secret": [
        Ask(path={"webhook_id": "{hook}"}, keep={"secret": "second hook secret"}),
        Ask(422, path={"webhook_id": "{hook}"}, body={"overlap_seconds": "{hook secret}"}),
    ],
    "GET /v1/webhooks/{webhook_id}/deliveries": [
        Ask(path={"webhook_id": "{hook}"}),
        Ask(422, path={"webhook_id": "{hook}"}, query="state={token}"),
    ],
    "POST /v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay": [
        Ask(path={"webhook_id": "{hook}", "delivery_id": "{delivery}"}),
        Ask(404, path={"webhook_id": "{hook}", "delivery_id": "{hook secret}"}),
    ],
    "POST /v1/webhooks/{webhook_id}/replay": [Ask(path={"webhook_id": "{hook}"})],
    "DELETE /v1/webhooks/{webhook_id}": [Ask(204, path={"webhook_id": "{idle hook}"})],
    "POST /v1/leaks": [
        Ask(body={"token": "{rotated token}", "url": "https://a.example/?t={rotated token}"}),
        Ask(body={"token": "{second}", "source": "a chat"}),
        Ask(body={"token": "{own}"}),
        Ask(422, body={"token": ["{token}"]}),
    ],
    "POST /v1/leaks/github": [
        Ask(403, body=[{"token": "{token}", "type": "akm", "url": "{token}"}], token=""),
    ],
    "POST /v1/keys/{key_id}/revoke": [
        Ask(path={"key_id": "{bearer}"}, body={"reason": "leaked"}),
        Ask(422, path={"key_id": "{bearer}"}, body={"at": ["{token}"]}),
    ],
    "POST /v1/keys/revoke": [Ask(body={"owner": "nobody", "dry_run": True})],
    "DELETE /v1/keys/{key_id}": [Ask(204, path={"key_id": "{again}"})],
    "GET /v1/audit": [Ask(query="limit=1000"), Ask(422, query="since={token}")],
    "GET /v1/audit/checkpoint": [Ask()],
    "GET /v1/audit/proof": [Ask(query="index=0"), Ask(422, query="log={token}")],
    "GET /v1/stats": [Ask()],
    "GET /metrics": [Ask()],
    "GET /healthz": [Ask(token="")],
    "GET /readyz": [Ask(token="")],
}


class Run(NamedTuple):
    """A command: its words, what it reads, how it ends.

    ``keep`` names fields of the JSON that it prints, as above. ``shows``: names of secrets that
    were given to it, and that it repeats by contract.
    """

    words: str
    stdin: str = ""
    code: int = 0
    keep: Mapping[str, str] = _NOTHING
    shows: tuple[str, ...] = ()


COMMANDS: Final[dict[str, list[Run]]] = {
    # Runs below all requests of the same test.
    "serve": [],
    "db upgrade": [Run("")],
    "keys create": [
        Run("--json", keep={"key_id": "signed", "secret": "minted"}),
        Run("--kind bearer --json", keep={"key_id": "bearer", "token": "token"}),
        Run("own --secret-stdin", "{own}\n", shows=("own",)),
        Run("own --secret-stdin", "{own}\n", code=1),
        Run("own2 --secret-stdin --kind bearer", "{own}\n", code=2),
    ],
    "keys list": [Run(""), Run("--state {token}", code=2)],
    "keys show": [Run("{signed}"), Run("{token}", code=2)],
    "keys versions": [Run("{signed} --json")],
    "keys update": [Run("{signed} --owner other"), Run("{token} --owner other", code=2)],
    "keys rotate": [Run("{signed} --json", keep={"secret": "second"})],
    "sign": [
        Run("own", "{own}\n"),
        Run("own --timestamp 5 --nonce {nonce}", "{own}\n"),
        Run("own --request https://a.example/x --json", "{own}\n"),
    ],
    "validate": [
        Run("--token-stdin --json", "{token}\n"),
        Run("--token-stdin", "{token}x\n", code=1),
        Run("own {static}"),
        Run("{token} {static}", code=1),
    ],
    "keys import": [Run("{folder}/import.jsonl"), Run("{folder}/wrong.jsonl", code=1)],
    "keys export": [Run(""), Run("--output {folder}/export.jsonl")],
    "keys revoke": [Run("{bearer} --reason leaked"), Run("{token}", code=2)],
    "tokens create": [
        Run("--scope validate --json", keep={"token": "narrow", "key_id": "narrow id"})
    ],
    "tokens rotate": [Run("{narrow id} --json", keep={"token": "narrow rotated"})],
    "tokens list": [Run("--json")],
    "tokens revoke": [Run("{narrow id}")],
    "webhooks create": [
        Run("{receiver} --json", keep={"id": "hook", "secret": "hook secret"}),
        Run("https://a.example/{token}", code=2),
        Run("{receiver} --type {token}", code=2),
        Run("{receiver} --description {hook secret}", code=2),
    ],
    "webhooks list": [Run(""), Run("--json")],
    "webhooks show": [Run("{hook}"), Run("{token}", code=2)],
    "webhooks update": [Run("{hook} --description pager"), Run("{hook} --target {token}", code=2)],
    "webhooks test": [Run("{hook} --json", keep={"id": "delivery"})],
    "webhooks rotate-secret": [Run("{hook} --json", keep={"secret": "second hook secret"})],
    "webhooks deliveries": [Run("{hook}"), Run("{hook} --state {token}", code=2)],
    "webhooks replay": [Run("{hook} {delivery}"), Run("{hook} {token}", code=2), Run("{hook}")],
    "webhooks delete": [Run("{hook}")],
    "keys scan": [
        Run("-", "one {token} and {own}\n", code=1),
        Run("{folder}/data --json"),
    ],
    "keys leaked": [Run("", "{token}\n"), Run("--where https://a.example/{second}", "{second}\n")],
    "secrets rotate-kek": [Run(""), Run("--url https://a.example/{token}", code=2)],
    "secrets rotate-pepper": [
        Run(""),
        Run("--retire {token}", code=2),
        Run("--retire 1 --dry-run --json"),
        Run("--retire 1 --yes --json"),
    ],
    "keys delete": [Run("{signed} --yes")],
    "audit tail": [Run(""), Run("--json -n 1000"), Run("--key-id {token}", code=2)],
    "audit export": [Run(""), Run("--output {folder}/audit.jsonl")],
    "audit verify": [Run("")],
    "audit prove": [Run("0"), Run("0 --output {folder}/proof.json")],
    "db backup": [Run("{folder}/copy.db")],
    "db restore": [
        Run("{folder}/copy.db", code=2),
        Run("{folder}/copy.db --against {token}", code=2),
    ],
    "doctor": [Run(""), Run("--json")],
    "version": [Run("")],
}
