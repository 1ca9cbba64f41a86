"""The same question asked of other packages, as their users would ask it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from api_key_manager import open_manager, sign
from benchmarks.inprocess import KEY, SECRET, WARM, warm
from benchmarks.table import Case, Work, measure, show


def django_key(folder: Path) -> Work:
    """djangorestframework-api-key: ``is_valid`` on SQLite."""
    # In this thread, so that it pays for no hand-over.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    import django
    from django.conf import settings

    settings.configure(
        INSTALLED_APPS=[
            "django.contrib.contenttypes", "django.contrib.auth", "rest_framework",
            "rest_framework_api_key",
        ],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": folder / "django.db"}
        },
        SECRET_KEY="benchmark",
        USE_TZ=True,
    )  # fmt: skip
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from rest_framework_api_key.models import APIKey

    _, token = APIKey.objects.create_key(name="bench")

    async def work() -> None:
        for _ in range(50):
            assert APIKey.objects.is_valid(token)

    return work


async def keyshield_key() -> Work:
    """keyshield: a verification that its cache answers."""
    from keyshield.hasher.argon2 import Argon2ApiKeyHasher
    from keyshield.repositories.in_memory import InMemoryApiKeyRepository
    from keyshield.services.cached import CachedApiKeyService

    service: Any = CachedApiKeyService(
        repo=InMemoryApiKeyRepository(),
        hasher=Argon2ApiKeyHasher(pepper="benchmark-pepper-of-sufficient-length"),
        # Its random delay of 0.1 to 0.3 s turned off, also for hits of the cache.
        min_delay=0,
        max_delay=0,
    )
    _, token = await service.create(name="bench")
    await service.verify_key(token)

    async def work() -> None:
        for _ in range(500):
            await service.verify_key(token)

    return work


async def run(folder: Path) -> bool:
    now = int(time.time())
    key_file = str(folder / "keys" / "peers.key")
    database = f"sqlite:///{folder / 'data' / 'peers.db'}"
    async with open_manager(database, AKM_MASTER_KEY_FILE=key_file) as manager:
        await manager.create_key(KEY, SECRET)
        bearer = await manager.create_key(kind="bearer")
        await manager.validate_key(KEY, sign(SECRET, KEY, now), now)
        await manager.verify(token=bearer["token"])

        async def tokens() -> None:
            for _ in range(500):
                await manager.verify(token=bearer["token"])

        ours = "ours, signed, SQLite, warm, audit on"
        cases = [
            Case(ours, warm(manager, now), WARM),
            Case("ours, bearer token, SQLite, warm, audit on", tokens, 500, ours),
            Case("djangorestframework-api-key is_valid, SQLite", django_key(folder), 50, ours),
            Case("keyshield, cache hit, its delay turned off", await keyshield_key(), 500, ours),
        ]
        await measure(cases, rounds=7)
        return show("Other packages in the same run", cases)
