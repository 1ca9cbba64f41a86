"""Secrets at rest: the master key, what is derived from it, and what is sealed under it."""

from api_key_manager.encryption.envelopes import EnvelopeBox
from api_key_manager.encryption.keyring import DATA, PEPPER, Keyring, WrappedKey
from api_key_manager.encryption.masterkey import MasterKey, make_key_file, read_key_file

__all__ = [
    "DATA",
    "PEPPER",
    "EnvelopeBox",
    "Keyring",
    "MasterKey",
    "WrappedKey",
    "make_key_file",
    "read_key_file",
]
