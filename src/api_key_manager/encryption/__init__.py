"""Secrets at rest: key-encryption keys, the keyring that they wrap, what is sealed under that."""

from api_key_manager.encryption.envelopes import EnvelopeBox
from api_key_manager.encryption.keyring import (
    AUDIT_MAC,
    AUDIT_SIGN,
    DATA,
    FOUNDED,
    PEPPER,
    RECORD_MAC,
    Keyring,
    new_key,
)
from api_key_manager.encryption.masterkey import MasterKey, make_key_file, read_key_file
from api_key_manager.encryption.provider import KeyEncryption, LocalKey, Providers
from api_key_manager.encryption.wrapping import (
    WrappedKey,
    add_missing,
    open_keyring,
    rewrap,
    seed,
    wrap,
)

__all__ = [
    "AUDIT_MAC",
    "AUDIT_SIGN",
    "DATA",
    "FOUNDED",
    "PEPPER",
    "RECORD_MAC",
    "EnvelopeBox",
    "KeyEncryption",
    "Keyring",
    "LocalKey",
    "MasterKey",
    "Providers",
    "WrappedKey",
    "add_missing",
    "make_key_file",
    "new_key",
    "open_keyring",
    "read_key_file",
    "rewrap",
    "seed",
    "wrap",
]
