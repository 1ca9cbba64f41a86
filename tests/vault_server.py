"""A stand-in for Vault that speaks its protocol over real HTTP, and a real one where there is one.

It knows what these tests need: key-value secrets (version 2) with their versions, transit with
associated data, tokens with policies and an end, AppRole, Kubernetes, namespaces, seal and unseal,
and says no in Vault's own words.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.services import free_port

__all__ = ["ROOT", "RealVault", "StandIn", "Vault", "real_vault", "stand_in"]

ROOT = "root-token-of-the-tests"
Answer = tuple[int, Any]
_NOW = "2026-01-01T00:00:00Z"


class No(Exception):  # noqa: N818
    def __init__(self, status: int, *errors: str) -> None:
        self.answer: Answer = (status, {"errors": list(errors)})


@dataclass
class Token:
    policies: list[str]
    ends: float = float("inf")
    ttl: int = 0
    last: float = float("inf")


@dataclass
class Space:
    """What one namespace holds."""

    mounts: dict[str, str] = field(default_factory=dict)
    kv: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    transit: dict[str, list[bytes]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    secret_ids: set[str] = field(default_factory=set)


class Vault:
    """What tests do to either."""

    address: str
    root = ROOT
    unseal_key = "unseal"

    def api(
        self, method: str, path: str, body: Any = None, *, namespace: str = "", ok: bool = True
    ) -> dict[str, Any]:
        """Ask as the root."""
        headers = {"X-Vault-Token": self.root, "Content-Type": "application/json"}
        if namespace:
            headers["X-Vault-Namespace"] = namespace
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.address}/v1/{path}", data, headers, method=method
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
            if ok:
                raise AssertionError(f"{method} {path}: {error.code} {text!r}") from None
        return json.loads(text) if text.strip() else {}

    def prepare(self, namespace: str = "") -> None:
        """The engines, the auth method, the transit key and the policy of docs/vault.md."""
        self.api("POST", "sys/mounts/kv", {"type": "kv", "options": {"version": "2"}},
                 namespace=namespace)  # fmt: skip
        self.api("POST", "sys/mounts/transit", {"type": "transit"}, namespace=namespace)
        self.api("POST", "sys/auth/approle", {"type": "approle"}, namespace=namespace)
        self.api("POST", "transit/keys/akm", {"type": "aes256-gcm96"}, namespace=namespace)
        page = Path(__file__).parents[1] / "docs" / "vault.md"
        (policy,) = re.findall(
            r"```text\n(path .*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        )
        self.api("PUT", "sys/policies/acl/akm", {"policy": policy}, namespace=namespace)
        deadline = time.monotonic() + 10  # a real one makes a new store ready in its own time
        while "errors" in (found := self.api("GET", "kv/config", ok=False, namespace=namespace)):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)

    def token(self, *policies: str, ttl: int = 3600, most: int = 0) -> str:
        """A new token."""
        body: dict[str, Any] = {"policies": list(policies), "ttl": f"{ttl}s", "renewable": True}
        if most:
            body["explicit_max_ttl"] = f"{most}s"
        return str(self.api("POST", "auth/token/create", body)["auth"]["client_token"])

    def revoke(self, token: str) -> None:
        self.api("POST", "auth/token/revoke", {"token": token})

    def approle(self, name: str, ttl: int = 3600) -> tuple[str, str]:
        """A role id and a secret id."""
        self.api("POST", f"auth/approle/role/{name}",
                 {"token_ttl": f"{ttl}s", "token_policies": "akm"})  # fmt: skip
        role = self.api("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        made = self.api("POST", f"auth/approle/role/{name}/secret-id", {})
        return role, made["data"]["secret_id"]

    def seal(self) -> None:
        self.api("POST", "sys/seal")

    def unseal(self) -> None:
        self.api("POST", "sys/unseal", {"key": self.unseal_key})


class StandIn(Vault):
    """Vault, as far as these tests go.

    Attributes:
        asked: method and path of every request, tokens never among them.
        answer: given in place of the next ones, if it is set: status, headers, body.
        delay: seconds before each answer.
    """

    def __init__(self) -> None:
        self.spaces: dict[str, Space] = {"": Space()}
        self.tokens: dict[str, Token] = {ROOT: Token(["root"])}
        self.sealed = False
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.delay = 0.0
        self.lock = threading.RLock()
        self.address = ""

    def respond(self, method: str, path: str, headers: Any, body: Any) -> Answer:
        parts = urlsplit(path)
        query = {k: v[-1] for k, v in parse_qs(parts.query).items()}
        route = unquote(parts.path).removeprefix("/v1/").strip("/")
        if method == "GET" and query.get("list") == "true":
            method = "LIST"
        with self.lock:
            self.asked.append((method, route))
            self.headers.append({k.lower(): v for k, v in headers.items()})
            try:
                if route == "sys/health":
                    state = {"initialized": True, "sealed": self.sealed, "standby": self.sealed}
                    return (503 if self.sealed else 200), state
                if route == "sys/unseal":
                    self.sealed = body.get("key") != self.unseal_key
                    return 200, {"sealed": self.sealed}
                if self.sealed:
                    raise No(503, "Vault is sealed")
                space = self.spaces.get(headers.get("X-Vault-Namespace", "").strip("/"))
                if space is None:
                    raise No(404, "no handler for route")
                return self.route(space, method, route, query, headers, body)
            except No as no:
                return no.answer

    def route(
        self, space: Space, method: str, route: str, query: dict[str, str], headers: Any, body: Any
    ) -> Answer:
        if match := re.fullmatch(r"auth/(approle|kubernetes)/login", route):
            return self.login(space, match[1], body)
        name = headers.get("X-Vault-Token", "")
        token = self.tokens.get(name)
        if token is None or token.ends <= time.monotonic():
            raise No(403, "permission denied")
        if route.startswith("auth/token/") and route.endswith("-self"):
            if route.endswith("renew-self"):
                if not token.ttl:
                    raise No(400, "lease is not renewable")
                token.ends = min(time.monotonic() + token.ttl, token.last)
            return self.about(name, token)
        if not self.allowed(space, token, method, route):
            raise No(403, "1 error occurred:\n\t* permission denied\n\n")
        if route.startswith(("sys/", "auth/")):
            return self.manage(space, route, body)
        mount, _, rest = route.partition("/")
        kind = space.mounts.get(mount)
        if kind == "kv":
            return self.kv(space, method, rest, query, body)
        if kind == "transit":
            return self.transit(space, rest, body)
        raise No(404, f"no handler for route {route!r}. route entry not found.")

    def about(self, name: str, token: Token) -> Answer:
        left = 0 if token.ends == float("inf") else max(int(token.ends - time.monotonic()), 1)
        auth = {"client_token": name, "policies": token.policies, "lease_duration": left,
                "renewable": token.ttl > 0}  # fmt: skip
        data = {"ttl": left, "renewable": token.ttl > 0, "policies": token.policies}
        return 200, {"auth": auth, "data": data}

    def make(self, policies: list[str], ttl: int, most: int = 0) -> Answer:
        name, now = "hvs." + secrets.token_urlsafe(24), time.monotonic()
        last = now + most if most else float("inf")
        self.tokens[name] = Token(["default", *policies], min(now + ttl, last), ttl, last)
        return self.about(name, self.tokens[name])

    def login(self, space: Space, method: str, body: Any) -> Answer:
        if method == "kubernetes":
            if body.get("role") != "akm" or body.get("jwt") != "service-account":
                raise No(403, "permission denied")
            return self.make(["akm"], 3600)
        role = space.roles.get(body.get("role_id", ""))
        if role is None or body.get("secret_id") not in space.secret_ids:
            raise No(400, "invalid role or secret ID")
        return self.make([role["token_policies"]], _seconds(role["token_ttl"]))

    def allowed(self, space: Space, token: Token, method: str, route: str) -> bool:
        if "root" in token.policies:
            return True
        needed = {"GET": "read", "LIST": "list", "DELETE": "delete"}.get(method, "update")
        for name in token.policies:
            text = re.sub(r"#.*", "", space.policies.get(name, ""))
            for path, words in re.findall(
                r'path\s+"([^"]+)"\s*\{\s*capabilities\s*=\s*\[([^\]]*)\]', text
            ):
                if fnmatch.fnmatchcase(route, path) or (
                    needed == "list" and fnmatch.fnmatchcase(route + "/", path)
                ):
                    has = set(re.findall(r"\w+", words))
                    if needed in has or (needed == "update" and "create" in has):
                        return True
        return False

    def manage(self, space: Space, route: str, body: Any) -> Answer:
        if route == "sys/seal":
            self.sealed = True
        elif match := re.fullmatch("sys/mounts/(.+)", route):
            space.mounts[match[1]] = body["type"]
        elif match := re.fullmatch("sys/policies/acl/(.+)", route):
            space.policies[match[1]] = body["policy"]
        elif match := re.fullmatch("sys/namespaces/(.+)", route):
            self.spaces[match[1]] = Space()
        elif route == "auth/token/create":
            return self.make(
                body["policies"],
                _seconds(body["ttl"]),
                _seconds(body.get("explicit_max_ttl", "0s")),
            )
        elif route == "auth/token/revoke":
            self.tokens.pop(body["token"], None)
        elif match := re.fullmatch("auth/approle/role/([^/]+)", route):
            space.roles[f"id-of-{match[1]}"] = body
        elif match := re.fullmatch("auth/approle/role/([^/]+)/role-id", route):
            return 200, {"data": {"role_id": f"id-of-{match[1]}"}}
        elif re.fullmatch("auth/approle/role/([^/]+)/secret-id", route):
            made = secrets.token_hex(16)
            space.secret_ids.add(made)
            return 200, {"data": {"secret_id": made}}
        elif route != "sys/auth/approle":
            raise No(404, "unsupported path")
        return 204, None

    def kv(self, space: Space, method: str, rest: str, query: dict[str, str], body: Any) -> Answer:
        verb, _, path = rest.partition("/")
        if ".." in path:
            raise No(400, "relative paths not supported")
        if verb == "config":
            return 200, {"data": {"max_versions": 0}}
        if verb == "metadata" and method == "LIST":
            below = f"{path}/" if path else ""
            names = {
                tail.partition("/")[0] + ("/" if "/" in tail else "")
                for known in space.kv
                if known.startswith(below) and (tail := known.removeprefix(below))
            }
            return (200, {"data": {"keys": sorted(names)}}) if names else (404, {"errors": []})
        found = space.kv.get(path, [])
        if verb == "metadata" and method == "DELETE":
            space.kv.pop(path, None)
            return 204, None
        if verb == "data" and method in ("POST", "PUT"):
            cas = body.get("options", {}).get("cas")
            if cas is not None and cas != len(found):
                raise No(400, "check-and-set parameter did not match the current version")
            version = {
                "data": body["data"], "created_time": _NOW, "deletion_time": "", "destroyed": False
            }  # fmt: skip
            space.kv[path] = [*found, version]
            return 200, {"data": {"version": len(found) + 1, "created_time": _NOW}}
        if not found:
            raise No(404)
        numbers = (body or {}).get("versions") or [int(query.get("version", 0)) or len(found)]
        versions = [found[n - 1] for n in map(int, numbers) if 0 < n <= len(found)]
        if verb == "metadata":
            shown = {
                str(i): {k: v for k, v in version.items() if k != "data"}
                for i, version in enumerate(found, 1)
            }
            return 200, {"data": {"versions": shown, "current_version": len(found)}}
        if verb == "data" and method == "GET":
            if not versions:
                raise No(404)
            (version,) = versions
            gone = version["destroyed"] or version["deletion_time"]
            metadata = {k: v for k, v in version.items() if k != "data"}
            metadata["version"] = int(numbers[0])
            data = {"data": None if gone else version["data"], "metadata": metadata}
            return (404 if gone else 200), {"data": data}
        for version in versions:
            if verb == "destroy":
                version.update(destroyed=True, data=None)
            else:
                version["deletion_time"] = "" if verb == "undelete" else _NOW
        return 204, None

    def transit(self, space: Space, rest: str, body: Any) -> Answer:
        verb, _, name = rest.partition("/")
        if verb == "keys":
            name, _, rotate = name.partition("/")
            if rotate or name not in space.transit:
                space.transit.setdefault(name, []).append(AESGCM.generate_key(256))
            return 204, None
        keys = space.transit.get(name)
        if keys is None:
            raise No(400, "encryption key not found")
        bound = base64.b64decode(body.get("associated_data", ""))
        if verb == "encrypt":
            nonce = secrets.token_bytes(12)
            sealed = AESGCM(keys[-1]).encrypt(nonce, base64.b64decode(body["plaintext"]), bound)
            text = base64.b64encode(nonce + sealed).decode()
            return 200, {"data": {"ciphertext": f"vault:v{len(keys)}:{text}"}}
        match = re.fullmatch(r"vault:v(\d+):(.+)", body["ciphertext"])
        if match is None or not 0 < int(match[1]) <= len(keys):
            raise No(400, "invalid ciphertext: no prefix")
        raw = base64.b64decode(match[2])
        try:
            plain = AESGCM(keys[int(match[1]) - 1]).decrypt(raw[:12], raw[12:], bound)
        except (InvalidTag, ValueError):
            raise No(400, "cipher: message authentication failed") from None
        return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@contextlib.contextmanager
def stand_in(port: int = 0, state: StandIn | None = None) -> Iterator[StandIn]:
    """One that listens; with a ``state``, the same one started again."""
    vault = StandIn() if state is None else state

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            if vault.delay:
                time.sleep(vault.delay)
            if vault.answers:
                status, headers, body = vault.answers.pop(0)
                vault.asked.append((self.command, self.path))
            else:
                body_of = json.loads(raw) if raw else {}
                status, value = vault.respond(self.command, self.path, self.headers, body_of)
                headers = {"Content-Type": "application/json"}
                body = b"" if value is None else json.dumps(value).encode() + b"\n"
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """Clients that hang up are no news."""

        def get_request(self) -> Any:
            connection, address = super().get_request()
            live.append(connection)
            return connection, address

    live: list[Any] = []
    with Server(("127.0.0.1", port), Handler) as server:
        vault.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield vault
        finally:
            server.shutdown()
            thread.join()
            for connection in live:  # as a process that ends: open connections end with it
                with contextlib.suppress(OSError):
                    connection.shutdown(2)
                connection.close()


class RealVault(Vault):
    """A development server of OpenBao or Vault."""

    def __init__(self, address: str, root: str, unseal_key: str = "") -> None:
        self.address, self.root, self.unseal_key = address, root, unseal_key


@contextlib.contextmanager
def real_vault() -> Iterator[RealVault | None]:
    """A real one, in memory, on a port of its own; ``None`` where no program is on PATH."""
    program = shutil.which("bao") or shutil.which("vault")
    if program is None:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="akm-vault-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [program, "server", "-dev", f"-dev-root-token-id={ROOT}",
                 f"-dev-listen-address=127.0.0.1:{port}", "-dev-no-store-token"],
                stdout=file, stderr=file, env={**os.environ, "HOME": folder},
            )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            while not (key := re.search(r"Unseal Key: (\S+)", log.read_text())):
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, "no Vault came up"
                time.sleep(0.05)
            yield RealVault(f"http://127.0.0.1:{port}", ROOT, key[1])
        finally:
            process.terminate()
            process.wait(20)
