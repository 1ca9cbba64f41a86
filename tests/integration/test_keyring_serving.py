"""The steps of docs/operations.md to change the master key, with real servers under traffic."""

from __future__ import annotations

import base64
import json
import re
import secrets
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import signed
from tests.integration.places import until
from tests.integration.servers import TOKEN, Server, environment, started

DOCS = Path(__file__).resolve().parents[2] / "docs"


class Traffic:
    """Validates without a pause, at whichever server is there."""

    def __init__(self, keys: list[dict[str, Any]]) -> None:
        self.keys = keys
        self.urls: list[str] = []
        self.answers: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10) as client:
            while not self._over.is_set():
                for key in self.keys:
                    body = {"token": key["token"]} if "token" in key else signed(key)
                    for url in self.urls:
                        try:
                            answer = client.post(f"{url}/v1/validate", json=body)
                        except httpx.TransportError:
                            continue  # it is being restarted: the next one answers
                        self.answers.append(answer.json().get("reason", str(answer.status_code)))

    def wait(self, more: int = 40) -> None:
        """Let so many more be answered."""
        wanted = len(self.answers) + more
        while len(self.answers) < wanted:
            assert self._thread.is_alive()
            self._over.wait(0.01)


def akm(folder: Path, *arguments: str, **settings: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "api_key_manager", *arguments], cwd=folder, timeout=60,
        env=environment(folder, **settings), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_master_key_changed_under_traffic(tmp_path):
    """Two servers are restarted in turn with the new key and the former one, every key is wrapped
    anew, they are restarted without the former one: every validation meanwhile is answered, as
    ever, and a backup of the new state opens without the former key."""
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    steps = page.split("### Change it\n")[1].split("\n#")[0]
    for named in ("AKM_PREVIOUS_MASTER_KEY_FILE", "akm secrets rotate-kek", "akm doctor"):
        assert named in steps
    old, new = tmp_path / "keys" / "old.key", tmp_path / "keys" / "new.key"
    base = {"DATABASE_URL": f"sqlite:///{tmp_path}/data/akm.db", "AKM_ADMIN_TOKEN": TOKEN}
    before = {**base, "AKM_MASTER_KEY_FILE": str(old)}
    after = {**base, "AKM_MASTER_KEY_FILE": str(new)}
    both = {**after, "AKM_PREVIOUS_MASTER_KEY_FILE": str(old)}
    akm(tmp_path, "db", "upgrade", **before)
    made = [
        json.loads(akm(tmp_path, "keys", "create", "--kind", kind, "--json", **before))
        for kind in ("signed", "bearer")
    ]
    new.touch(0o600)
    new.write_text(base64.b64encode(secrets.token_bytes(32)).decode())

    with ExitStack() as stack, Traffic(made) as traffic:
        running: dict[int, tuple[Server, str]] = {}

        def restart(number: int, settings: dict[str, str]) -> None:
            if number in running:
                server, url = running.pop(number)
                traffic.urls.remove(url)
                assert server.stop() == 0
            server = stack.enter_context(started(tmp_path, **settings))
            running[number] = server, server.url
            traffic.urls.append(server.url)
            traffic.wait()

        for number in (0, 1):
            restart(number, before)
        for number in (0, 1):
            restart(number, both)
        assert "still wrapped under the previous one" in akm(tmp_path, "doctor", **both)
        assert "5 keys were wrapped anew" in akm(tmp_path, "secrets", "rotate-kek", **both)
        traffic.wait()
        assert "can be removed now" in akm(tmp_path, "doctor", **both)
        for number in (0, 1):
            restart(number, after)
        old.unlink()
        traffic.wait()
        akm(tmp_path, "secrets", "rotate-pepper", **after)
        # The servers look for it every few seconds, and write what they saw once a second.
        until(lambda: "all digests are under pepper 2" in akm(tmp_path, "doctor", **after))
    assert set(traffic.answers) == {"valid"}
    assert "WARNING" not in (tmp_path / "stderr").read_text()
    assert not re.search(r"cannot be|ERROR", (tmp_path / "stderr").read_text())
