"""The examples run from a clone, and the published snippets run as they were published."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.programs import output, run, tool
from tests.published import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def example(name: str, cwd: Path, *arguments: str | Path, **env: str) -> list[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    return output(command, cwd, **env).splitlines()


class TestPython:
    def test_basic_validation(self, tmp_path: Path):
        """A signature is accepted, with a timestamp too, and not under another timestamp."""
        assert example("basic_validation.py", tmp_path) == [
            "Key valid: True",
            "Key valid with a timestamp: True",
            "Validation error: the signature does not match",
        ]

    def test_key_lifecycle(self, tmp_path: Path):
        """Create, validate, list, revoke, refused; the log tells it in this order."""
        lines = example("key_lifecycle.py", tmp_path)
        assert lines[:6] == [
            "Created key: client-123",
            "Key valid: True",
            "Active keys: 1",
            "Key revoked",
            "Refused: revoked",
            "Operations logged: 4",
        ]
        assert [line.split(" - ")[1] for line in lines[6:]] == [
            "key_created: client-123",
            "key_validated: client-123",
            "key_revoked: client-123",
            "key_refused: client-123",
        ]

    def test_batch_operations(self, tmp_path: Path):
        """One answer per item, in order."""
        assert example("batch_operations.py", tmp_path) == [
            "Key 1: Valid",
            "Key 2: Valid",
            "Key 3: Invalid",
        ]

    def test_configuration(self, tmp_path: Path):
        """The published defaults, and what the environment says instead."""
        published = ["Validation window: 360 minutes", "Vault enabled: False"]
        assert example("configuration.py", tmp_path)[:2] == published
        changed = example("configuration.py", tmp_path, VALIDATION_WINDOW_MINUTES="30")
        assert changed[0] == "Validation window: 30 minutes"

    def test_persistent_keys(self, tmp_path: Path):
        """A second process finds what the first one wrote."""
        log = "key_created key_validated key_rotated key_validated key_validated"
        for found in range(2):
            lines = example("persistent_keys.py", tmp_path, tmp_path / "keys" / "example.db")
            assert lines == [
                f"Keys found: {found}",
                "Verdict: valid, scheme timestamped, metadata {'client_name': 'Acme Corp'}",
                "After rotation, old secret: valid",
                "After rotation, new secret: valid",
                "After revocation: revoked",
                f"Audit log: {log} key_revoked key_refused",
            ]


VECTORS = [
    (["client-123"], "b199f79583a9be1f1f63c307e8b499d54d88d5635dd70b7aab02108ea9d502f4"),
    (
        ["client-123", "1767225600"],
        "b2ddacf30ea57e45979574bab3b6b8f17e3d2466fe4ac5efc7da9544299ca194",
    ),
    (
        ["client-123", "1767225600", "q1w2e3r4t5y6u7i8o9p0aA"],
        "a21e7c4d68e61ce819c32265ddd3678ac26f66eaae9ce118f2afb2028996149b",
    ),
]
SECRET = "super-secret-key"


class TestSigners:
    """Every language signs the same bytes."""

    def test_library(self):
        """The vectors are what the library signs."""
        from api_key_manager import sign

        for arguments, signature in VECTORS:
            key_id, timestamp, nonce = [*arguments, None, None][:3]
            seconds = None if timestamp is None else int(timestamp)
            assert sign(SECRET, str(key_id), seconds, nonce) == signature

    @pytest.mark.parametrize(
        "command",
        [
            pytest.param([None, "sign_request.py"], id="python"),
            pytest.param(["node", "sign_request.mjs"], id="node"),
            pytest.param(["go", "run", "sign_request.go"], id="go"),
            pytest.param(["sh", "sign_request.sh"], id="sh"),
        ],
    )
    def test_same_signature(self, command: list[str], tmp_path: Path):
        """Each example prints the signature of each vector, and the last one by itself."""
        program = sys.executable if command[0] is None else tool(command[0])
        if command[0] == "sh":
            tool("openssl")
        start = [program, *command[1:-1], str(EXAMPLES / command[-1])]
        for arguments, signature in [*VECTORS, ([], VECTORS[-1][1])]:
            assert output([*start, *arguments], tmp_path, AKM_SECRET=SECRET) == f"{signature}\n"
        refused = run([*start, "client-123"], tmp_path)
        assert refused.returncode != 0
        assert "usage: AKM_SECRET=" in refused.stderr


# The snippets below stand here as they were published, placeholder signatures included; only the
# surrounding words are left out.

BASIC_VALIDATION = """\
import asyncio
from core import AsyncAPIKeyValidator

async def validate_key():
    validator = AsyncAPIKeyValidator(
        validation_window_minutes=360,  # 6 hours
        clock_skew_tolerance_seconds=60
    )
    
    # Validate a key signature
    try:
        is_valid = await validator.validate(
            key="my-api-key",
            signature="abc123def456...",
            secret="my-secret-key"
        )
        print(f"Key valid: {is_valid}")
    except Exception as e:
        print(f"Validation error: {e}")

asyncio.run(validate_key())
"""  # noqa: W293 - as published

KEY_LIFECYCLE = """\
import asyncio
from core import KeyManager, AsyncAPIKeyValidator

async def manage_keys():
    # Initialize manager with validator
    validator = AsyncAPIKeyValidator()
    manager = KeyManager(validator)
    
    # Create a new key
    key = await manager.create_key(
        key_id="client-123",
        secret="super-secret-key",
        metadata={"client_name": "Acme Corp", "tier": "premium"}
    )
    print(f"Created key: {key['key_id']}")
    
    # Validate the key
    is_valid = await manager.validate_key(
        key_id="client-123",
        signature="abc123def456..."
    )
    
    # List active keys
    active_keys = manager.list_keys(active_only=True)
    print(f"Active keys: {len(active_keys)}")
    
    # Revoke a key
    await manager.revoke_key("client-123")
    print("Key revoked")
    
    # Get audit log
    audit_log = manager.get_audit_log()
    print(f"Operations logged: {len(audit_log)}")

asyncio.run(manage_keys())
"""  # noqa: W293 - as published

BATCH = """\
import asyncio
from core import AsyncAPIKeyValidator

async def batch_validate():
    validator = AsyncAPIKeyValidator()
    
    validations = [
        {"key": "key-1", "signature": "sig1", "secret": "secret1"},
        {"key": "key-2", "signature": "sig2", "secret": "secret2"},
        {"key": "key-3", "signature": "sig3", "secret": "secret3"},
    ]
    
    # Validate all keys concurrently
    results = await validator.batch_validate(validations)
    
    for i, result in enumerate(results):
        print(f"Key {i+1}: {'Valid' if result else 'Invalid'}")

asyncio.run(batch_validate())
"""  # noqa: W293 - as published

CONFIGURATION = """\
from config import Settings

# Access settings
print(f"Validation window: {Settings.VALIDATION_WINDOW_MINUTES} minutes")
print(f"Vault enabled: {Settings.VAULT_ENABLED}")
"""

TIMESTAMPS = """\
# Clock skew tolerance prevents distributed system issues
validator = AsyncAPIKeyValidator(
    clock_skew_tolerance_seconds=60  # Tolerates 1 minute of clock drift
)
"""

AUDIT = """\
# All operations logged automatically
audit_log = manager.get_audit_log()
for entry in audit_log:
    print(f"{entry['timestamp']} - {entry['action']}: {entry['key_id']}")
"""

PLACEHOLDER = '"abc123def456..."'


def published(snippet: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", snippet], cwd, **env)


class TestPublished:
    def test_basic_validation(self, tmp_path: Path):
        """A placeholder is no signature: the snippet's own `except` says so."""
        done = published(BASIC_VALIDATION, tmp_path)
        assert done.stdout == "Validation error: signature: 64 hex digits are allowed\n", (
            done.stderr
        )

    def test_basic_validation_signed(self, tmp_path: Path):
        """With a signature in place of the placeholder it succeeds."""
        signature = f"__import__('api_key_manager').sign({'my-secret-key'!r}, {'my-api-key'!r})"
        done = published(BASIC_VALIDATION.replace(PLACEHOLDER, signature), tmp_path)
        assert done.stdout == "Key valid: True\n", done.stderr

    def test_key_lifecycle(self, tmp_path: Path):
        """The key is made; the placeholder raises, since nothing else keeps a caller out."""
        done = published(KEY_LIFECYCLE, tmp_path)
        assert done.stdout == "Created key: client-123\n"
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            "api_key_manager.core.exceptions.ValidationError: signature: 64 hex digits are allowed"
        )

    def test_key_lifecycle_signed(self, tmp_path: Path):
        """With a signature in place of the placeholder it runs to its end."""
        signature = f"__import__('api_key_manager').sign({SECRET!r}, {'client-123'!r})"
        done = published(KEY_LIFECYCLE.replace(PLACEHOLDER, signature), tmp_path)
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            "Created key: client-123",
            "Active keys: 1",
            "Key revoked",
            "Operations logged: 3",
        ]

    def test_batch(self, tmp_path: Path):
        """Placeholders are invalid, one by one."""
        done = published(BATCH, tmp_path)
        assert done.stdout.splitlines() == ["Key 1: Invalid", "Key 2: Invalid", "Key 3: Invalid"]

    def test_configuration(self, tmp_path: Path):
        """Settings are read on the class, from the published environment too."""
        expected = "Validation window: 360 minutes\nVault enabled: False\n"
        assert published(CONFIGURATION, tmp_path).stdout == expected
        (tmp_path / ".env").write_text(ENVIRONMENT, encoding="utf-8")
        assert published(CONFIGURATION, tmp_path).stdout == expected
        (tmp_path / ".env").write_text(ENVIRONMENT.replace("=360 ", "=720 "), encoding="utf-8")
        assert published(CONFIGURATION, tmp_path).stdout.startswith("Validation window: 720 ")

    def test_timestamps(self, tmp_path: Path):
        """The clock skew is an argument of its own."""
        snippet = "from core import AsyncAPIKeyValidator\n" + TIMESTAMPS + "print(validator)"
        assert "AsyncAPIKeyValidator" in published(snippet, tmp_path).stdout

    def test_audit(self, tmp_path: Path):
        """Every operation is in the log, with the published fields; failures too."""
        before = KEY_LIFECYCLE.replace("asyncio.run(manage_keys())\n", "")
        signed = before.replace(
            PLACEHOLDER, f"__import__('api_key_manager').sign({SECRET!r}, {'client-123'!r})"
        )
        loop = "".join(f"    {line}\n" for line in AUDIT.splitlines())
        done = published(f"{signed}{loop}\nasyncio.run(manage_keys())\n", tmp_path)
        assert done.stderr == ""
        lines = done.stdout.splitlines()[4:]
        assert [line.split(" - ")[1] for line in lines] == [
            "key_created: client-123",
            "key_validated: client-123",
            "key_revoked: client-123",
        ]
        assert all(line.split(" - ")[0].endswith("+00:00") for line in lines)

    def test_signature_is_compared_in_constant_time(self):
        """As published: the one compare that decides is `hmac.compare_digest`."""
        import hmac

        from api_key_manager.core import signing

        assert signing.matches is hmac.compare_digest
