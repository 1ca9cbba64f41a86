"""A process that sends webhooks until it is killed; SSL_CERT_FILE names whom it trusts."""

from __future__ import annotations

import asyncio

from api_key_manager.config import Settings
from api_key_manager.wiring import open_deployment


async def main() -> None:
    async with open_deployment(Settings.load(), background=False) as deployment:
        assert deployment.outbox is not None
        # So that what a killed process had begun is soon tried again.
        deployment.outbox.lease_seconds = 0.5
        print("ready", flush=True)
        await deployment.outbox.run()


if __name__ == "__main__":
    asyncio.run(main())
