"""The client of Vault: on a stand-in over real HTTP, and on a real one where there is one."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from api_key_manager.core.exceptions import ConfigurationError, ValidationError, VaultError
from api_key_manager.vault_integration import AppRole, Kubernetes, VaultClient
from tests.services import free_port
from tests.vault_server import ROOT, StandIn, Vault, stand_in


@pytest.fixture
def client(vault: Vault) -> Iterator[VaultClient]:
    with VaultClient(vault.address, vault.root) as client:
        yield client


@pytest.fixture
def path() -> str:
    """A path that no other test uses."""
    return f"test/{uuid.uuid4().hex}"


def reason(call: object, *arguments: object, **more: object) -> str:
    with pytest.raises(VaultError) as caught:
        call(*arguments, **more)  # type: ignore[operator] # any of the client's methods
    assert ROOT not in f"{caught.value!r}{caught.value}"
    return caught.value.reason


class TestSecrets:
    def test_as_published(self, vault: Vault):
        """The published call gives the text of one field, from the mount `kv`."""
        vault.api("POST", "kv/data/api-keys", {"data": {"client-123": "hunter2"}})
        client = VaultClient(address=vault.address, token=vault.root)
        assert client.get_secret("api-keys", "client-123") == "hunter2"
        client.close()

    def test_versions(self, client: VaultClient, path: str):
        """Versions are kept, deleted and brought back, and destroyed for good."""
        assert [client.write(path, {"a": text}) for text in ("one", "two")] == [1, 2]
        assert client.get_secret(path, "a") == "two"
        assert client.get_secret(path, "a", version=1) == "one"
        client.delete(path, 1)
        assert reason(client.get_secret, path, "a", version=1) == "vault_deleted"
        client.undelete(path, 1)
        assert client.get_secret(path, "a", version=1) == "one"
        client.destroy(path, 1)
        assert reason(client.get_secret, path, "a", version=1) == "vault_destroyed"
        client.delete(path)
        assert reason(client.get_secret, path, "a") == "vault_deleted"
        found = [(v.version, v.deleted, v.destroyed) for v in client.versions(path)]
        assert found[0] == (2, True, False)
        assert found[1][2]
        client.erase(path)
        assert reason(client.get_secret, path, "a") == "vault_not_found"

    def test_missing(self, client: VaultClient, path: str):
        """A missing path and a missing field are told apart; a number is no text."""
        assert reason(client.get_secret, path, "a") == "vault_not_found"
        client.write(path, {"n": 5})
        assert reason(client.get_secret, path, "a") == "vault_field_not_found"
        assert reason(client.get_secret, path, "n") == "vault_field_not_found"
        assert reason(client.get_secret, path, "n", version=9) == "vault_not_found"

    def test_check_and_set(self, client: VaultClient, path: str):
        """A write that expects another version writes nothing."""
        client.write(path, {"a": "1"}, expected=0)
        assert reason(client.write, path, {"a": "2"}, expected=0) == "vault_conflict"
        assert client.write(path, {"a": "2"}, expected=1) == 2

    def test_list(self, client: VaultClient, path: str):
        """Names below a path, folders with a slash; nothing is an empty list."""
        assert client.list(path) == []
        client.write(f"{path}/a", {"x": "1"})
        client.write(f"{path}/b/c", {"x": "1"})
        assert sorted(client.list(path)) == ["a", "b/"]

    @pytest.mark.parametrize(
        "bad", ["", "/", "a//b", "../sys/seal", "a/../b", "a..b", "a/.", "a\n", "x" * 600]
    )
    def test_paths_stay(self, bad: str):
        """No path leaves the mount, or is read by the server as another one."""
        with VaultClient("http://127.0.0.1:1", "t") as client, pytest.raises(ValidationError):
            client.get_secret(bad, "a")

    def test_odd_names(self, client: VaultClient, path: str):
        """What means something in a URL is only a name here."""
        for name in ("a?b", "a#b", "a%2Fb", "a:b", "ä"):
            client.write(f"{path}/{name}", {"x": name})
            assert client.get_secret(f"{path}/{name}", "x") == name

    def test_async(self, client: VaultClient, path: str):
        """In a coroutine the loop goes on while Vault is asked."""

        async def job() -> tuple[str, int]:
            await client.run(client.write, path, {"a": "1"})
            ticks = 0
            asked = asyncio.ensure_future(client.run(client.get_secret, path, "a"))
            while not asked.done():
                ticks += 1
                await asyncio.sleep(0)
            return await asked, ticks

        found, ticks = asyncio.run(job())
        assert found == "1"
        assert ticks > 1


class TestTransit:
    def test_round_trip(self, client: VaultClient):
        """What was encrypted decrypts under the same associated data only, also after a rotation
        of the key."""
        sealed = client.encrypt("akm", b"\x00key", b"bound")
        assert client.decrypt("akm", sealed, b"bound") == b"\x00key"
        assert reason(client.decrypt, "akm", sealed, b"other") == "vault_refused"
        assert reason(client.decrypt, "akm", sealed[:-4] + "AAAA", b"bound") == "vault_refused"
        client._transport.post("/v1/transit/keys/akm/rotate")
        assert client.encrypt("akm", b"x", b"").startswith("vault:v")
        assert client.decrypt("akm", sealed, b"bound") == b"\x00key"


class TestTokens:
    def test_approle(self, vault: Vault, path: str):
        """A role logs in by itself, and again when its token was revoked."""
        role, secret = vault.approle("service")
        with VaultClient(vault.address, auth=AppRole(role, secret)) as client:
            client.write(f"api-keys/{path}", {"a": "1"})
            first = client._transport.token
            vault.revoke(first)
            client._session._logged_in = float("-inf")  # it was a while ago
            assert client.get_secret(f"api-keys/{path}", "a") == "1"
            assert client._transport.token != first
        wrong = VaultClient(vault.address, auth=AppRole(role, "wrong"))
        assert reason(wrong.get_secret, "api-keys/x", "a") == "vault_permission_denied"
        wrong.close()

    def test_policy(self, vault: Vault, path: str):
        """The documented policy allows the documented paths and nothing else."""
        with VaultClient(vault.address, vault.token("akm")) as client:
            client.write(f"api-keys/{path}", {"a": "1"})
            assert reason(client.read, "elsewhere") == "vault_permission_denied"
            assert reason(client.write, "elsewhere", {}) == "vault_permission_denied"
            sealed = client.encrypt("akm", b"x", b"y")
            assert client.decrypt("akm", sealed, b"y") == b"x"
            assert "akm" in client.token_policies()

    def test_renewed(self, vault: Vault, path: str):
        """A token is renewed before its end: it outlives its first life."""
        with VaultClient(vault.address, vault.token("akm", ttl=2)) as client:
            for _ in range(8):
                client.write(f"api-keys/{path}", {"a": "1"})
                time.sleep(0.4)

    def test_ended(self, vault: Vault):
        """A token that has ended is a refusal that says so."""
        token = vault.token("akm")
        vault.revoke(token)
        with VaultClient(vault.address, token) as client:
            assert reason(client.read, "api-keys/x") == "vault_permission_denied"

    def test_kubernetes(self, fake: StandIn, tmp_path: Path):
        """A pod logs in by its service account, whose token is read at each login."""
        file = tmp_path / "token"
        with VaultClient(fake.address, auth=Kubernetes("akm", token_file=file)) as client:
            assert reason(client.renew) == "vault_permission_denied"
            file.write_text("service-account\n")
            client.write("api-keys/x", {"a": "1"})
            assert ("POST", "auth/kubernetes/login") in fake.asked

    def test_nothing_shown(self):
        """No repr shows a token or a secret id."""
        client = VaultClient("http://127.0.0.1:1", "hidden-token")
        shown = [repr(client), repr(client._transport), repr(AppRole("r", "hidden-id"))]
        assert "hidden" not in " ".join(shown)
        client.close()


class TestNamespaces:
    def test_apart(self, vault: Vault, path: str):
        """A namespace has stores of its own."""
        if isinstance(vault, StandIn):
            vault.api("POST", "sys/namespaces/team", {})
        elif "errors" in vault.api("POST", "sys/namespaces/team", {}, ok=False):
            pytest.skip("this edition has no namespaces")
        vault.prepare("team")
        with (
            VaultClient(vault.address, vault.root, namespace="team") as team,
            VaultClient(vault.address, vault.root) as other,
        ):
            team.write(path, {"a": "1"})
            assert team.get_secret(path, "a") == "1"
            assert reason(other.get_secret, path, "a") == "vault_not_found"
            assert team.health() == "active"


class TestTrouble:
    def test_sealed(self, vault: Vault, path: str):
        """A sealed Vault says so at once, and works again when it is unsealed."""
        if not vault.unseal_key:
            pytest.skip("this Vault is somebody else's: it is not to be sealed")
        with VaultClient(vault.address, vault.root) as client:
            client.write(path, {"a": "1"})
            vault.seal()
            try:
                assert reason(client.get_secret, path, "a") == "vault_sealed"
                assert client.health() == "sealed"
            finally:
                vault.unseal()
            deadline = time.monotonic() + 10
            while client.health() != "active":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert client.get_secret(path, "a") == "1"

    def test_standby(self, fake: StandIn):
        """A standby node's answers, and its redirect, which is not followed."""
        with VaultClient(fake.address, ROOT, attempts=1) as client:
            client.renew()
            for status in (472, 473):
                fake.answers = [(status, {}, b"{}")]
                assert reason(client.read, "a") == "vault_standby"
            with stand_in() as elsewhere:
                fake.answers = [(307, {"Location": f"{elsewhere.address}/v1/kv/data/a"}, b"")]
                assert reason(client.read, "a") == "vault_standby"
                assert elsewhere.asked == []

    def test_retried(self, fake: StandIn):
        """What may be repeated is sent again after trouble that passes; a write is not."""
        with VaultClient(fake.address, ROOT) as client:
            client.write("a", {"x": "1"})
            fake.answers = [(500, {}, b"{}"), (502, {}, b"{}")]
            assert client.get_secret("a", "x") == "1"
            fake.answers = [(429, {}, b'{"errors": ["request path \\"x\\": rate limit"]}')]
            assert client.write("a", {"x": "2"}) == 2
            fake.answers = [(500, {}, b"{}")]
            assert reason(client.write, "a", {"x": "3"}) == "vault_unavailable"
            assert client.read("a").version == 2

    def test_never_for_ever(self, fake: StandIn):
        """Retries are bounded."""
        with VaultClient(fake.address, ROOT, attempts=3) as client:
            client.renew()
            before = len(fake.asked)
            fake.answers = [(500, {}, b"{}")] * 9
            assert reason(client.read, "a") == "vault_unavailable"
            assert len(fake.asked) - before == 3

    def test_away(self):
        """Nobody listens: an error, in bounded time."""
        with VaultClient(f"http://127.0.0.1:{free_port()}", ROOT) as client:
            begun = time.monotonic()
            assert reason(client.read, "a") == "vault_unavailable"
            assert time.monotonic() - begun < 5

    def test_slow(self, fake: StandIn):
        """An answer that takes too long is none."""
        with VaultClient(fake.address, ROOT, timeout=0.2, attempts=1) as client:
            client.renew()
            fake.delay = 1.0
            assert reason(client.read, "a") == "vault_unavailable"
            fake.delay = 0.0

    @pytest.mark.parametrize(
        "body", [b"x" * 2_000_000, b"[]", b"<html>", b'{"data": {}}', b"[" * 99999]
    )
    def test_strange_answers(self, fake: StandIn, body: bytes):
        """An answer that is too long, or not Vault's, is an error and nothing else."""
        with VaultClient(fake.address, ROOT, attempts=1) as client:
            client.renew()
            fake.answers = [(200, {}, body)]
            assert reason(client.read, "a") in ("vault_unavailable", "vault_refused")

    def test_echoed_token(self, fake: StandIn):
        """A server that repeats the token gets it into no message."""
        with VaultClient(fake.address, ROOT, attempts=1) as client:
            client.renew()
            fake.answers = [(400, {}, f'{{"errors": ["bad {ROOT}"]}}'.encode())]
            assert reason(client.read, "a") == "vault_refused"

    def test_environment_has_no_say(self, fake: StandIn, monkeypatch: pytest.MonkeyPatch):
        """No proxy of the environment sees the token."""
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("VAULT_TOKEN", "another")
        with VaultClient(fake.address, ROOT) as client:
            client.write("a", {"x": "1"})
        assert {h.get("x-vault-token") for h in fake.headers} == {ROOT}


class TestTls:
    def test_certificates(self, tmp_path: Path):
        """A certificate of a named authority is believed, and no other one."""
        authority, other = trustme.CA(), trustme.CA()
        good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
        authority.cert_pem.write_to_path(good)
        other.cert_pem.write_to_path(bad)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        from http.server import BaseHTTPRequestHandler, HTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(HTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

            def get_request(self) -> tuple[ssl.SSLSocket, object]:
                connection, address = super().get_request()
                return context.wrap_socket(connection, server_side=True), address

        with Quiet(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                address = f"https://127.0.0.1:{server.server_port}"
                with VaultClient(address, "t", ca_file=str(good)) as client:
                    assert client.health() == "active"
                with VaultClient(address, "t", ca_file=str(bad)) as client:
                    assert reason(client.health) == "vault_unavailable"
            finally:
                server.shutdown()
                thread.join()

    @pytest.mark.parametrize(
        "wrong",
        [{"address": "ftp://x"}, {"token": ""}, {"token": "a\nb"}, {"ca_file": "/no/such"},
         {"timeout": 0}, {"namespace": "a b"}, {"auth": AppRole("a", "b")}],
    )  # fmt: skip
    def test_arguments(self, wrong: dict[str, object]):
        """What cannot be used is refused before anything is sent."""
        with pytest.raises(ConfigurationError):
            VaultClient(**{"address": "http://127.0.0.1:1", "token": "t", **wrong})  # type: ignore[arg-type] # wrong on purpose


def test_imported_when_used():
    """Nothing pays for hvac and requests but who makes a client."""
    code = (
        "import sys, api_key_manager.vault_integration, api_key_manager.wiring;"
        "print([m for m in ('hvac', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
