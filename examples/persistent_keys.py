"""Keys that survive the process, in a SQLite file: ``python examples/persistent_keys.py [FILE]``.

Run it twice: the second run finds the keys of the first.
"""

import asyncio
import sys
import time

from api_key_manager import open_manager, sign


async def main(url):
    async with open_manager(url) as manager:
        print(f"Keys found: {len(manager.list_keys(active_only=False))}")
        key = await manager.create_key(
            metadata={"client_name": "Acme Corp"},
            permissions=["documents.read"],
            expires_at=time.time() + 30 * 86_400,  # in 30 days
        )
        # Shown this once: the store keeps it encrypted, and get_key() shows none.
        key_id, secret = key["key_id"], key["secret"]

    # Closed and opened again, as after a restart.
    async with open_manager(url) as manager:
        now = int(time.time())
        verdict = await manager.verify(
            key_id, sign(secret, key_id, now), now, permissions="documents.read"
        )
        print(f"Verdict: {verdict.reason}, scheme {verdict.scheme}, metadata {verdict.metadata}")

        rotated = await manager.rotate_key(key_id, overlap_seconds=3600)
        for version, known in (("old", secret), ("new", rotated["secret"])):
            verdict = await manager.verify(key_id, sign(known, key_id, now), now)
            print(f"After rotation, {version} secret: {verdict.reason}")

        await manager.revoke_key(key_id, "end of the example")
        verdict = await manager.verify(key_id, sign(rotated["secret"], key_id, now), now)
        print(f"After revocation: {verdict.reason}")

        page = await manager.find_audit(key_id=key_id, ascending=True)
        print("Audit log:", *(event["action"] for event in page["items"]))


asyncio.run(main(f"sqlite:///{sys.argv[1] if len(sys.argv) > 1 else 'data/example.db'}"))
