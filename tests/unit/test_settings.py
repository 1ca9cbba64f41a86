"""Settings: defaults, sources, what is refused and in which words."""

from __future__ import annotations

import base64
import re
from ipaddress import ip_network
from pathlib import Path

import pydantic
import pytest

from api_key_manager.config import Settings
from api_key_manager.config.kinds import decode_master_key
from api_key_manager.config.settings import (
    _of_this_process,
    allowed_values,
    shown,
)
from api_key_manager.core.exceptions import ConfigurationError
from tests.published import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = bytes(range(224, 256))


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every test starts without a setting, without `.env`, and with nothing loaded."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    _of_this_process.cache_clear()
    yield
    _of_this_process.cache_clear()


def refusal(**overrides: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(**overrides)
    message = str(caught.value)
    assert "\n" not in message
    # Nothing that a traceback prints may hold a secret either.
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return message


class TestSources:
    def test_published_names_keep_their_defaults(self):
        """The names and defaults of the published configuration hold."""
        settings = Settings()
        assert settings.VALIDATION_WINDOW_MINUTES == 360
        assert settings.CLOCK_SKEW_TOLERANCE_SECONDS == 60
        assert settings.DEBUG is False
        assert settings.LOG_LEVEL == "INFO"
        assert settings.VAULT_ENABLED is False
        assert settings.VAULT_ADDR == "http://127.0.0.1:8200"
        assert settings.VAULT_TOKEN == ""
        assert settings.VAULT_NAMESPACE == "kv"
        assert settings.CACHE_TTL_SECONDS == 300
        assert settings.RATE_LIMIT_ENABLED is False
        assert settings.RATE_LIMIT_PER_MINUTE == 100

    def test_defaults_are_allowed_and_built(self):
        """A start without any setting is a valid one: every default passes its own check."""
        Settings.load(**{name: field.default for name, field in Settings.model_fields.items()})

    def test_published_env_file(self, tmp_path: Path):
        """The published snippet works as a `.env`, comments behind values included."""
        (tmp_path / ".env").write_text(ENVIRONMENT, encoding="utf-8")
        settings = Settings.load()
        assert settings.VALIDATION_WINDOW_MINUTES == 360
        assert settings.VAULT_TOKEN == "dev-token"

    def test_environment_wins_over_file_and_arguments_over_both(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        """Arguments, then environment, then `.env`."""
        (tmp_path / ".env").write_text("PORT=1001\nWORKERS=3\nHOST=::1\n", encoding="utf-8")
        monkeypatch.setenv("PORT", "1002")
        monkeypatch.setenv("WORKERS", "4")
        settings = Settings.load(PORT=1003)
        assert (settings.PORT, settings.WORKERS, settings.HOST) == (1003, 4, "::1")
        assert Settings(PORT=1).PORT == 1

    def test_unrelated_entries_are_ignored(self, tmp_path: Path):
        """A `.env` that belongs to several programs is no mistake."""
        (tmp_path / ".env").write_text(
            "POSTGRES_PASSWORD=x\nport=9\nPORT=7000\nJUST_A_NAME\n", encoding="utf-8"
        )
        assert Settings.load().PORT == 7000

    def test_names_are_case_sensitive(self, monkeypatch: pytest.MonkeyPatch):
        """A lower-case variable is somebody else's."""
        monkeypatch.setenv("port", "9")
        assert Settings.load().PORT == 5000

    def test_empty_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """`PORT=` is no port, neither in the environment nor in `.env`."""
        (tmp_path / ".env").write_text("WORKERS=\nCACHE_TTL_SECONDS=7\n", encoding="utf-8")
        monkeypatch.setenv("PORT", "")
        monkeypatch.setenv("CACHE_TTL_SECONDS", "")
        settings = Settings.load()
        assert (settings.PORT, settings.WORKERS, settings.CACHE_TTL_SECONDS) == (5000, 1, 7)

    def test_byte_order_mark(self, tmp_path: Path):
        """The mark that a Windows editor writes is not part of the first name."""
        (tmp_path / ".env").write_text("PORT=7000\n", encoding="utf-8-sig")
        assert Settings.load().PORT == 7000

    def test_unreadable_env_file(self, tmp_path: Path):
        """A `.env` that is no text stops the start with one line."""
        (tmp_path / ".env").write_bytes(b"PORT=\xff\xfe\n")
        assert refusal() == ".env cannot be read: it is not UTF-8 text"

    def test_unknown_override(self):
        """A misspelt argument is refused, not ignored."""
        assert refusal(PROT=1) == "'PROT' is not a setting"

    def test_frozen(self):
        """Settings don't change after they were checked."""
        with pytest.raises(pydantic.ValidationError):
            Settings().PORT = 1


class TestOnTheClass:
    def test_readable_and_lazy(self, monkeypatch: pytest.MonkeyPatch):
        """`Settings.X` reads the environment at first use, and then no more."""
        monkeypatch.setenv("VALIDATION_WINDOW_MINUTES", "30")
        assert Settings.VALIDATION_WINDOW_MINUTES == 30
        monkeypatch.setenv("VALIDATION_WINDOW_MINUTES", "31")
        assert Settings.VALIDATION_WINDOW_MINUTES == 30
        assert Settings().VALIDATION_WINDOW_MINUTES == 31

    def test_every_field(self):
        """What an instance answers, the class answers."""
        settings = Settings()
        for name in Settings.model_fields:
            assert getattr(Settings, name) == getattr(settings, name)

    def test_vault_token_is_plain_text(self, monkeypatch: pytest.MonkeyPatch):
        """The published snippet passes it on as it is."""
        monkeypatch.setenv("VAULT_TOKEN", "dev-token")
        assert type(Settings.VAULT_TOKEN) is str
        assert Settings.VAULT_TOKEN == "dev-token"

    def test_wrong_value(self, monkeypatch: pytest.MonkeyPatch):
        """The class refuses in the same words as `load`, every time."""
        monkeypatch.setenv("PORT", "http")
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"^PORT='http' is not allowed: "):
                _ = Settings.PORT

    def test_unknown_name(self):
        """A name that is no setting is an `AttributeError`, as on any class."""
        with pytest.raises(AttributeError):
            _ = Settings.NO_SUCH_SETTING  # type: ignore[attr-defined]  # that is what is tested


RANGES = [
    ("VALIDATION_WINDOW_MINUTES", 5, 5_256_000, 1),
    ("CLOCK_SKEW_TOLERANCE_SECONDS", 0, 3600, 1),
    ("CACHE_TTL_SECONDS", 0, 86_400, 1),
    ("CACHE_MAX_ENTRIES", 1, 10_000_000, 1),
    ("NONCE_WINDOW_SECONDS", 1, 86_400, 1),
    ("PORT", 0, 65_535, 1),
    ("RATE_LIMIT_PER_MINUTE", 1, 1_000_000_000, 1),
    ("WORKERS", 1, 256, 1),
    ("REVOCATION_BOUND_SECONDS", 0.2, 60, 0.01),
    ("AUDIT_FLUSH_SECONDS", 0.01, 10, 0.001),
]


class TestValues:
    @pytest.mark.parametrize(("name", "low", "high", "step"), RANGES)
    def test_ranges(self, monkeypatch: pytest.MonkeyPatch, name, low, high, step):
        """Both ends are allowed, the next value outside is not, and the line says the range."""
        for value in (low, high):
            monkeypatch.setenv(name, str(value))
            assert getattr(Settings.load(), name) == value
        for value in (low - step, high + step, "nan", "inf", "-inf", "much", "1e400", "9" * 5000):
            monkeypatch.setenv(name, str(value))
            message = refusal()
            assert message.startswith(f"{name}='{str(value)[:40]}")
            assert message.endswith(f"from {low} to {high}")
            assert len(message) < 200

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("LOG_LEVEL", "LOUD"),
            ("LOG_FORMAT", "xml"),
            ("AUDIT_VALIDATIONS", "some"),
            ("KEK_PROVIDER", "cloud"),
            ("SECRET_STORE", "paper"),
            ("ON_STORE_OUTAGE", "allow"),
            ("ON_LIMITER_OUTAGE", "panic"),
            ("DEBUG", "perhaps"),
            ("VAULT_ENABLED", "2"),
            ("ALLOW_STATIC_SIGNATURES", "nope"),
            ("TOKEN_PREFIX", "Akm"),
            ("TOKEN_PREFIX", "akm_"),
            ("TOKEN_PREFIX", "a__b"),
            ("TOKEN_PREFIX", "1a"),
            ("TOKEN_PREFIX", "a" * 33),
            ("TOKEN_PREFIX", "akm\n"),
            ("HOST", "local host"),
            ("HOST", "[::1]"),
            ("VAULT_NAMESPACE", "/kv"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
            ("TRUSTED_PROXIES", "10.0.0.1/8"),
            ("TRUSTED_PROXIES", "proxy.internal"),
            ("TRUSTED_PROXIES", "10.0.0.1,,10.0.0.2"),
            ("TLS_CERT", "a\nb"),
            ("AUTHORIZE_PROFILE", "Nginx"),
            ("AUTHORIZE_PROFILE", "apache"),
            ("AUTHORIZE_METADATA", "a,,b"),
            ("AUTHORIZE_METADATA", ",".join("abcdefghijklmnopqrstuvwxyzABCDEFG")),
        ],
    )
    def test_refused(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str):
        """One line names the variable, the value and what is allowed."""
        monkeypatch.setenv(name, value)
        assert refusal() == f"{name}={value!r} is not allowed: {allowed_values(name)}"

    def test_first_wrong_variable_only(self):
        """Two mistakes are told one at a time."""
        message = refusal(PORT=-1, HOST="")
        assert message.count("is not allowed") == 1

    @pytest.mark.parametrize("value", ["a", "a1", "akm_live", "a_1_b", "a" * 32])
    def test_token_prefixes(self, value: str):
        """The grammar of prefixes, up to 32 characters."""
        assert value == Settings.load(TOKEN_PREFIX=value).TOKEN_PREFIX

    def test_trusted_proxies(self):
        """Addresses and networks of both families, parsed."""
        settings = Settings.load(TRUSTED_PROXIES="10.0.0.0/8, 192.0.2.1,2001:db8::/32")
        assert settings.trusted_proxies == (
            ip_network("10.0.0.0/8"),
            ip_network("192.0.2.1/32"),
            ip_network("2001:db8::/32"),
        )
        assert Settings.load().trusted_proxies == ()

    @pytest.mark.parametrize(
        "url", ["memory://", "sqlite:///akm.db", "sqlite:////var/lib/akm.db", "postgresql://h/d"]
    )
    def test_database_urls(self, url: str):
        """What the stores are, or will be, named by."""
        assert url == Settings.load(DATABASE_URL=url).DATABASE_URL

    @pytest.mark.parametrize(
        "url",
        [
            "mysql://user:hunter2@host/db",
            "postgres://user:hunter2@host/db",
            "postgresql+psycopg://user:hunter2@host/db",
            "sqlite://",
            "sqlite:///",
            "sqlite:///:memory:",
            "sqlite:///data/",
            "sqlite://data/akm.db",
            "sqlite:///akm.db?mode=memory",
            "sqlite:///akm.db\n",
            "memory://x",
            "hunter2",
            "postgresql://",
        ],
    )
    def test_database_urls_refused(self, url: str):
        """An unknown scheme, or a database that would not last, is refused without its password."""
        message = refusal(DATABASE_URL=url)
        assert message.startswith("DATABASE_URL")
        assert "hunter2" not in message
        assert "sqlite:///path/to/file.db, memory:// or postgresql://" in message

    @pytest.mark.parametrize("name", ["REDIS_URL", "VAULT_ADDR"])
    def test_urls_are_not_shown(self, name: str):
        """A password in a URL of the wrong kind is not printed."""
        assert "hunter2" not in refusal(**{name: "ftp://user:hunter2@host"})
        assert "hunter2" not in refusal(**{name: "user:hunter2@host"})

    def test_tls_is_a_pair(self):
        """A certificate without its key is refused, and the other way round."""
        assert refusal(TLS_CERT="c.pem") == "TLS_CERT is set, but TLS_KEY is not: set both or none"
        assert refusal(TLS_KEY="k.pem") == "TLS_KEY is set, but TLS_CERT is not: set both or none"
        assert Settings.load(TLS_CERT="c.pem", TLS_KEY="k.pem").TLS_KEY == "k.pem"

    def test_rules_need_a_gateway(self):
        """Rules without a profile would be about requests that nobody tells of: refused."""
        expected = "AUTHORIZE_RULES is set, but AUTHORIZE_PROFILE is not: set both"
        assert refusal(AUTHORIZE_RULES="rules.toml") == expected
        settings = Settings.load(AUTHORIZE_RULES="rules.toml", AUTHORIZE_PROFILE="envoy")
        assert settings.AUTHORIZE_RULES == "rules.toml"

    @pytest.mark.parametrize(
        ("text", "names"),
        [("", ()), ("plan", ("plan",)), (" plan , team name", ("plan", "team name"))],
    )
    def test_metadata_names(self, text: str, names: tuple[str, ...]):
        """Names between commas, without the spaces around them."""
        assert Settings.load(AUTHORIZE_METADATA=text).authorize_metadata == names


class TestSecrets:
    @pytest.mark.parametrize(
        "encode",
        [
            base64.b64encode,
            base64.urlsafe_b64encode,
            lambda key: base64.urlsafe_b64encode(key).rstrip(b"="),
        ],
    )
    def test_master_key(self, encode):
        """Both alphabets, with and without padding, mean the same 32 bytes."""
        text = encode(MASTER_KEY).decode()
        assert decode_master_key(Settings.load(AKM_MASTER_KEY=text).AKM_MASTER_KEY) == MASTER_KEY

    @pytest.mark.parametrize(
        "text",
        [
            base64.b64encode(MASTER_KEY[:31]).decode(),
            base64.b64encode(MASTER_KEY + b"x").decode(),
            MASTER_KEY.hex(),
            "correct horse battery staple!!!!",
            base64.b64encode(MASTER_KEY).decode() + "\n",
            "é" * 43,
            "=",
        ],
    )
    def test_master_key_refused(self, text: str):
        """Anything but 32 bytes is refused, and not shown."""
        message = refusal(AKM_MASTER_KEY=text)
        assert message.startswith("AKM_MASTER_KEY (value not shown) is not allowed: base64")
        assert text.strip() == "=" or text.strip() not in message

    def test_one_master_key(self):
        """Two sources of the master key are one too many."""
        message = refusal(
            AKM_MASTER_KEY=base64.b64encode(MASTER_KEY).decode(), AKM_MASTER_KEY_FILE="key"
        )
        assert message == "AKM_MASTER_KEY and AKM_MASTER_KEY_FILE are both set: set only one"

    @pytest.mark.parametrize("token", ["t" * 31, "t" * 32 + " ", "t" * 32 + "é", "t" * 32 + "\n"])
    def test_admin_token_refused(self, token: str):
        """A short token, or one that no header can carry, is refused and not shown."""
        message = refusal(AKM_ADMIN_TOKEN=token)
        assert message.startswith("AKM_ADMIN_TOKEN (value not shown) is not allowed: 32 or more")
        assert "ttt" not in message

    def test_admin_token(self):
        """32 printable characters are enough."""
        assert Settings.load(AKM_ADMIN_TOKEN="!" + "~" * 31).AKM_ADMIN_TOKEN

    def test_no_url_scheme_of_a_secret(self):
        """The start of a secret is not shown for looking like a URL's."""
        assert "sesame" not in refusal(AKM_ADMIN_TOKEN="sesame://x")

    def test_repr_hides_secrets(self):
        """`repr` and `str` hold no secret and no URL that may carry one."""
        master_key = base64.b64encode(MASTER_KEY).decode()
        settings = Settings.load(
            AKM_MASTER_KEY=master_key,
            AKM_ADMIN_TOKEN="t" * 40,
            VAULT_TOKEN="hvs.hunter2",
            DATABASE_URL="postgresql://user:hunter2@host/db",
            REDIS_URL="redis://:hunter2@host",
        )
        for text in (repr(settings), str(settings)):
            assert "hunter2" not in text
            assert master_key not in text
            assert "ttt" not in text

    def test_pydantic_error_hides_secrets(self):
        """Also the error of `Settings(...)` itself doesn't repeat what it was given."""
        with pytest.raises(pydantic.ValidationError) as caught:
            Settings(AKM_ADMIN_TOKEN="hunter2", AKM_MASTER_KEY="hunter2")
        assert "hunter2" not in str(caught.value)


def documented() -> dict[str, tuple[str, str, str]]:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    assert len(rows) == len({name for name, *_ in rows}), "a variable is listed twice"
    return {name: (default.strip().strip("`"), *rest) for name, default, *rest in rows}


class TestDocumentation:
    def test_configuration_page(self):
        """docs/configuration.md says of every setting what the code says."""
        assert documented() == {
            name: (shown(field.default), allowed_values(name), field.description)
            for name, field in Settings.model_fields.items()
        }

    def test_example_file(self):
        """.env.example lists every setting with its default, commented out."""
        text = (ROOT / ".env.example").read_text(encoding="utf-8")
        lines = re.findall(r"^#([A-Z0-9_]+)=(.*)$", text, re.MULTILINE)
        assert lines == [
            (name, shown(field.default)) for name, field in Settings.model_fields.items()
        ]

    def test_example_file_uncommented(self, tmp_path: Path):
        """Copied and uncommented as it is, it changes nothing."""
        text = (ROOT / ".env.example").read_text(encoding="utf-8")
        uncommented = re.sub(r"^#([A-Z0-9_]+=)", r"\1", text, flags=re.MULTILINE)
        (tmp_path / ".env").write_text(uncommented, encoding="utf-8")
        assert Settings.load() == Settings.model_construct()

    def test_every_description_is_a_line(self):
        """A description is one sentence, fit for a table cell."""
        for name, field in Settings.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name
            assert "|" not in field.description, name
