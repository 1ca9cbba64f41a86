"""What secrets are found by when they leak: given to those of an older schema, and checked."""

from __future__ import annotations

import logging

from api_key_manager.core.exceptions import EncryptionError, StorageError
from api_key_manager.core.models import ApiKey
from api_key_manager.core.ports import SecretBox
from api_key_manager.core.records import mark_of
from api_key_manager.core.signing import matches
from api_key_manager.storage import SqlStore, marks
from api_key_manager.vault_integration.secret_store import refers

__all__ = ["mark_secrets", "marks_fit"]

_log = logging.getLogger(__name__)
_AT_ONCE = 200


async def mark_secrets(store: SqlStore, box: SecretBox) -> int:
    """Mark every live secret that has no mark; where there is none left, that is one query.

    Returns:
        How many were marked. A secret that does not open is left as it is, and reported by those
        who need it.
    """
    after, done = ("", 0), 0
    try:
        while some := await store.driver.read_aside(marks.unmarked, after, _AT_ONCE):
            after = some[-1].key_id, some[-1].version
            made = []
            for secret in some:
                try:
                    text = box.open("secret", secret.key_id, secret.version, secret.sealed)
                except EncryptionError:
                    continue
                made.append((secret, mark_of(box, text.decode())))
            done += await store.driver.write(marks.put, made)
    except StorageError as error:
        _log.warning("secrets could not be marked, so that a leak of one finds it: %s", error)
    return done


def marks_fit(record: ApiKey, box: SecretBox) -> bool:
    """Whether the secrets of an intact record would be found, should they leak: their marks, where
    they have any, are theirs. One that is kept elsewhere may have been changed there.

    Raises:
        EncryptionError: a secret cannot be opened.
    """
    for version in record.versions:
        mark: object = version.mark  # whatever an editor wrote there
        if version.sealed is None or mark is None or refers(version.sealed):
            continue
        secret = box.open("secret", record.key_id, version.version, version.sealed).decode()
        if not (isinstance(mark, bytes) and matches(mark_of(box, secret), mark)):
            return False
    return True
