"""`kill -9` of who sends, at any moment: no event is lost, and none makes two deliveries."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from api_key_manager.core.changing import Origin
from api_key_manager.webhooks import Sender
from tests.integration.places import Place
from tests.integration.receivers import receiving

KILLS = int(os.environ.get("AKM_WEBHOOK_KILLS", "6"))
_CHILD = Path(__file__).with_name("webhook_sender.py")


@pytest.mark.slow
async def test_killed_while_sending(tmp_path: Path):
    """Every event reaches the receiver at least once, each delivery under one id."""
    place, bundle = Place(tmp_path), tmp_path / "ca.pem"
    async with (
        receiving(save=bundle) as receiver,
        place.open(background=False, WEBHOOK_ALLOW_PRIVATE=True) as deployment,
    ):
        assert deployment.webhooks is not None
        deployment.webhooks._sender = Sender(private=True, context=receiver.context)
        hook = await deployment.webhooks.create({"url": receiver.url}, Origin("tester"))
        environment = place.environment(WEBHOOK_ALLOW_PRIVATE="true", SSL_CERT_FILE=str(bundle))

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, str(_CHILD)], cwd=tmp_path, env=environment,
                stdout=subprocess.PIPE,
            )  # fmt: skip

        async def ready(process: subprocess.Popen[bytes]) -> None:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"

        made, following = 0, start()
        for _ in range(KILLS):
            process, following = following, start()
            await ready(process)
            for _ in range(8):
                made += 1
                await deployment.manager.create_key(f"k{made}")
            await asyncio.sleep(random.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        await ready(following)
        try:
            for _ in range(1200):
                ((left,),) = place.sql(
                    "SELECT (SELECT count(*) FROM audit_events WHERE action = 'key_created')"
                    " - (SELECT count(*) FROM webhook_deliveries WHERE state = 'done')"
                )
                if left == 0:
                    break
                # A try that failed while the machine was busy need not wait for its turn.
                place.sql("UPDATE webhook_deliveries SET next_at = 0 WHERE outcome IS NOT NULL"
                          " AND state = 'pending' AND next_at > ?",
                          int(deployment.manager.clock() + 2) * 10**6)  # fmt: skip
                await asyncio.sleep(0.05)
        finally:
            following.send_signal(signal.SIGKILL)
            following.communicate()
        ids: dict[str, set[str]] = {}
        for received in receiver.got:
            key_id = json.loads(received.body)["data"]["key_id"]
            ids.setdefault(key_id, set()).add(received.headers["webhook-id"])
        assert set(ids) == {f"k{i + 1}" for i in range(made)}
        assert all(len(each) == 1 for each in ids.values())
        assert place.sql("SELECT count(*), count(DISTINCT event_id) FROM webhook_deliveries") == [
            (made, made)
        ]
        assert hook["disabled"] is False
        with pytest.raises(sqlite3.IntegrityError):
            place.sql("UPDATE webhook_deliveries SET event_id = 1")
