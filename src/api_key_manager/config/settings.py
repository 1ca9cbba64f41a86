"""The settings: what the environment and ``.env`` may say, checked before anything starts.

The published form reads a setting on the class, and loads it once per process::

    from api_key_manager import Settings

    Settings.VALIDATION_WINDOW_MINUTES  # 360

A program that wants its own copy, or another value, makes an instance::

    Settings.load(PORT=8080)

A wrong value is a ``ConfigurationError`` of one line: the variable, the value, what is allowed.
The value of a secret is never part of it, nor of ``repr``.
"""

from __future__ import annotations

import functools
import re
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_args, get_origin

import annotated_types as at
import pydantic
from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from api_key_manager.config.kinds import (
    AdminToken,
    Allowed,
    DatabaseUrl,
    Grants,
    Host,
    HttpUrl,
    IssuerUrl,
    MasterKey,
    Mount,
    Names,
    Networks,
    Path,
    Profile,
    RedisUrl,
    Sink,
    Text,
    TokenPrefix,
    names,
    networks,
)
from api_key_manager.core.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
    from pydantic.fields import FieldInfo
else:
    # The same class, without importing a private module at run time.
    ModelMetaclass = type(BaseSettings)

__all__ = ["Settings", "allowed_values", "shown"]

_SHOWN_CHARACTERS: Final = 80


class _ReadableOnTheClass(ModelMetaclass):
    """Lets ``Settings.PORT`` answer with the value loaded for this process."""

    if not TYPE_CHECKING:  # a type checker must go on refusing names that are no settings

        def __getattr__(cls, name: str) -> Any:  # noqa: N805 - the method of a metaclass
            """Answer for a field once the class is complete, else as any class would."""
            # While pydantic builds the class it asks for every field by name.
            complete = cls.__dict__.get("__pydantic_complete__", False)
            if complete and name in cls.__dict__["__pydantic_fields__"]:
                return getattr(_of_this_process(), name)
            return super().__getattr__(name)


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


class Settings(BaseSettings, metaclass=_ReadableOnTheClass):
    """Every setting, by the name of its environment variable.

    Args:
        **values: settings that win over the environment, which wins over ``.env``.

    Raises:
        pydantic.ValidationError: a value is not allowed; ``load`` words it for people.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        # Tolerates the byte order mark that some Windows editors write.
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        case_sensitive=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    VALIDATION_WINDOW_MINUTES: int = Field(
        360, ge=5, le=5_256_000, description="How old a signed timestamp may be, in minutes."
    )
    CLOCK_SKEW_TOLERANCE_SECONDS: int = Field(
        60, ge=0, le=3600, description="How far clocks may differ, in seconds, on either side."
    )
    ALLOW_STATIC_SIGNATURES: bool = Field(
        True, description="Whether signatures over the key id alone, which can be replayed, count."
    )
    NONCE_WINDOW_SECONDS: int = Field(
        300,
        ge=1,
        le=86_400,
        description="How old a timestamp that comes with a nonce may be, in seconds.",
    )
    TOKEN_PREFIX: TokenPrefix = Field(
        "akm", description="What minted tokens and secrets start with, so that scanners know them."
    )

    HOST: Host = Field("127.0.0.1", description="The address the server listens on.")
    PORT: int = Field(
        5000, ge=0, le=65_535, description="The TCP port the server listens on; 0 is any free one."
    )
    WORKERS: int = Field(1, ge=1, le=256, description="How many server processes to start.")
    TLS_CERT: Path = Field("", description="Certificate chain (PEM) to serve HTTPS; needs TLS_KEY.")
    TLS_KEY: Path = Field("", description="Private key (PEM) of TLS_CERT.")
    ALLOW_PLAIN_HTTP: bool = Field(
        False, description="Whether plain HTTP may leave this machine: only on a trusted network."
    )
    TRUSTED_PROXIES: Networks = Field(
        "", description="The proxies whose word about the client's address is taken."
    )
    DEBUG: bool = Field(False, description="Whether errors are logged with their traceback.")
    LOG_LEVEL: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)
    ] = Field("INFO", description="The least severe message that is logged.")
    LOG_FORMAT: Literal["text", "json"] = Field(
        "text", description="How log lines look: for people, or one JSON object a line."
    )

    DATABASE_URL: DatabaseUrl = Field(
        "sqlite:///data/akm.db",
        repr=False,
        description="Where keys and the audit log live: a file, this process's memory, or a"
        " PostgreSQL that several nodes share.",
    )
    DATABASE_CONNECTIONS: int = Field(
        10, ge=1, le=1000, description="How many connections to PostgreSQL a worker has at most."
    )
    DATABASE_TIMEOUT_SECONDS: float = Field(
        5,
        ge=0.1,
        le=300,
        description="How long an operation of PostgreSQL may take, waiting for a connection"
        " included, in seconds.",
    )
    AKM_ADMIN_TOKEN: AdminToken = Field(
        "", repr=False, description="An admin token that is valid only while this is set."
    )
    AKM_MASTER_KEY: MasterKey = Field(
        "", repr=False, description="The key that every stored secret is encrypted under."
    )
    AKM_MASTER_KEY_FILE: Path = Field(
        "", description="A file that holds the master key, instead of AKM_MASTER_KEY."
    )
    AKM_PREVIOUS_MASTER_KEY: MasterKey = Field(
        "",
        repr=False,
        description="The master key before this one, until `akm secrets rotate-kek` is done.",
    )
    AKM_PREVIOUS_MASTER_KEY_FILE: Path = Field(
        "", description="A file that holds it, instead of AKM_PREVIOUS_MASTER_KEY."
    )
    KEK_PROVIDER: Literal["local", "vault-transit"] = Field(
        "local",
        description="What wraps the keyring: the master key, or a key in Vault's transit engine.",
    )
    SECRET_STORE: Literal["database", "vault"] = Field(
        "database", description="Where secrets of new signed keys are kept."
    )

    OIDC_ISSUER: IssuerUrl = Field(
        "", description="Whose OIDC bearer tokens are taken in the place of admin tokens."
    )
    OIDC_AUDIENCE: Text = Field("", description="For whom these must be made: the `aud` claim.")
    OIDC_CLAIM: Text = Field("groups", description="The claim that decides what they open.")
    OIDC_SCOPES: Grants = Field("", description="What each value of that claim opens.")

    CACHE_TTL_SECONDS: int = Field(
        300, ge=0, le=86_400, description="How long a cached record may be used, in seconds."
    )
    CACHE_MAX_ENTRIES: int = Field(
        100_000, ge=1, le=10_000_000, description="How many records each cache holds."
    )
    REVOCATION_BOUND_SECONDS: float = Field(
        2, ge=0.2, le=60, description="How soon a revocation must be seen everywhere, in seconds."
    )
    ON_STORE_OUTAGE: Literal["deny", "serve-stale"] = Field(
        "deny", description="What to do past the bound while the database cannot be read."
    )
    MAX_STALE_SECONDS: int = Field(
        300,
        ge=1,
        le=86_400,
        description="How long `serve-stale` answers from cache past the bound, in seconds.",
    )

    AUDIT_VALIDATIONS: Literal["all", "failures", "none"] = Field(
        "all", description="Which validations the audit log holds. Changes are always logged."
    )
    AUDIT_FLUSH_SECONDS: float = Field(
        0.2,
        ge=0.01,
        le=10,
        description="How long validation events may wait to be written together, in seconds.",
    )
    AUDIT_RETENTION_DAYS: int = Field(
        0, ge=0, le=36_500, description="How long events are kept, in days; 0 is for ever."
    )
    AUDIT_SINK: Sink = Field(
        "",
        repr=False,
        description="Where checkpoints of the log go besides the database: a file, or an HTTP"
        " endpoint.",
    )

    RATE_LIMIT_ENABLED: bool = Field(
        False, description="Whether keys without limits of their own get a default one."
    )
    RATE_LIMIT_PER_MINUTE: int = Field(
        100, ge=1, le=1_000_000_000, description="The default limit of a key, in requests a minute."
    )
    FAILED_AUTH_PER_MINUTE: int = Field(
        60,
        ge=0,
        le=1_000_000_000,
        description="How many refused credentials a minute an address may show before it is told to"
        " wait; 0 is any number.",
    )
    FAILED_AUTH_TOTAL_PER_MINUTE: int = Field(
        6000,
        ge=0,
        le=1_000_000_000,
        description="The same of all addresses together, per process; 0 is any number.",
    )
    ON_LEAK: Literal["revoke", "flag"] = Field(
        "revoke",
        description="What is done with a key whose secret or token was found in public; `flag` only"
        " reports it. Admin tokens are always revoked.",
    )
    REDIS_URL: RedisUrl = Field(
        "", repr=False, description="A Redis or Valkey that workers and nodes share."
    )
    ON_LIMITER_OUTAGE: Literal["local", "deny", "allow"] = Field(
        "local", description="What becomes of rate limits while Redis is away."
    )

    WEBHOOK_ALLOW_PRIVATE: bool = Field(
        False,
        description="Whether webhooks may go to private addresses, and by plain HTTP: only where"
        " all who may make one may reach your network.",
    )

    VAULT_ENABLED: bool = Field(False, description="Whether Vault or OpenBao is used.")
    VAULT_ADDR: HttpUrl = Field("http://127.0.0.1:8200", description="The address of Vault.")
    VAULT_TOKEN: Text = Field("", repr=False, description="The token that Vault expects.")
    VAULT_NAMESPACE: Mount = Field("kv", description="The mount of Vault's key-value store.")
    VAULT_ENTERPRISE_NAMESPACE: Text = Field(
        "", description="The namespace of Vault Enterprise or OpenBao."
    )
    VAULT_ROLE_ID: Text = Field("", description="An AppRole's role id, instead of VAULT_TOKEN.")
    VAULT_SECRET_ID: Text = Field("", repr=False, description="The secret id of VAULT_ROLE_ID.")
    VAULT_KUBERNETES_ROLE: Text = Field(
        "", description="A role of Vault's Kubernetes login, instead of VAULT_TOKEN."
    )
    VAULT_CACERT: Path = Field(
        "", description="Certificate authorities (PEM) that Vault's certificate may come from."
    )
    VAULT_TRANSIT_KEY: Mount = Field(
        "akm", description="The key of the transit engine that wraps the keyring."
    )
    VAULT_LEASE_SECONDS: int = Field(
        3600,
        ge=1,
        le=86_400,
        description="How long what came from Vault is used without asking it again, in seconds.",
    )
    AUTHORIZE_PROFILE: Profile = Field(
        "", description="The gateway that asks `/v1/authorize`; unset, callers ask for themselves."
    )
    AUTHORIZE_RULES: Path = Field(
        "", description="What a key must hold for which request; needs AUTHORIZE_PROFILE."
    )
    AUTHORIZE_METADATA: Names = Field(
        "", description="The metadata that `/v1/authorize` tells the service, in X-Key-Metadata."
    )

    @pydantic.model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if bool(self.TLS_CERT) != bool(self.TLS_KEY):
            given, missing = ("TLS_CERT", "TLS_KEY") if self.TLS_CERT else ("TLS_KEY", "TLS_CERT")
            raise ValueError(f"{given} is set, but {missing} is not: set both or none")
        for name in ("AKM_MASTER_KEY", "AKM_PREVIOUS_MASTER_KEY"):
            if getattr(self, name) and getattr(self, f"{name}_FILE"):
                raise ValueError(f"{name} and {name}_FILE are both set: set only one")
        self._check_vault()
        if self.AUTHORIZE_RULES and not self.AUTHORIZE_PROFILE:
            # Rules are about the original request, which only a gateway can tell.
            raise ValueError("AUTHORIZE_RULES is set, but AUTHORIZE_PROFILE is not: set both")
        oidc = {name: getattr(self, name) for name in _OIDC}
        if any(oidc.values()) and not all(oidc.values()):
            missing = next(name for name, value in oidc.items() if not value)
            raise ValueError(f"{missing} is not set: set {', '.join(_OIDC)}, or none of them")
        if self.RATE_LIMIT_ENABLED and self.WORKERS > 1 and not self.REDIS_URL:
            raise ValueError(
                f"RATE_LIMIT_ENABLED=true does not go with WORKERS={self.WORKERS}, which would each"
                " count for themselves: set REDIS_URL, or use WORKERS=1, or"
                " RATE_LIMIT_ENABLED=false"
            )
        return self

    def _check_vault(self) -> None:
        ways = {
            "VAULT_TOKEN": self.VAULT_TOKEN,
            "VAULT_ROLE_ID": self.VAULT_ROLE_ID,
            "VAULT_KUBERNETES_ROLE": self.VAULT_KUBERNETES_ROLE,
        }
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are both set: set only one")
        if bool(self.VAULT_ROLE_ID) != bool(self.VAULT_SECRET_ID):
            raise ValueError("VAULT_ROLE_ID and VAULT_SECRET_ID go together: set both or none")
        for name, value in (("KEK_PROVIDER", "vault-transit"), ("SECRET_STORE", "vault")):
            if getattr(self, name) == value and not (self.VAULT_ENABLED and given):
                raise ValueError(
                    f"{name}={value} needs VAULT_ENABLED=true, and VAULT_TOKEN, VAULT_ROLE_ID or"
                    " VAULT_KUBERNETES_ROLE"
                )

    @property
    def vault_credentials(self) -> bool:
        """Whether the settings say how to log in to Vault."""
        return bool(self.VAULT_TOKEN or self.VAULT_ROLE_ID or self.VAULT_KUBERNETES_ROLE)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings from the environment and ``.env`` in the working directory.

        Args:
            **overrides: settings that win over both.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: one line about the first wrong variable.
        """
        for name in overrides:
            if name not in cls.model_fields:
                raise ConfigurationError(f"{_shown_text(name)} is not a setting")
        try:
            return cls(**overrides)
        except pydantic.ValidationError as error:
            message = _first_problem(error)
        except UnicodeDecodeError:
            message = ".env cannot be read: it is not UTF-8 text"
        except OSError as error:
            message = f".env cannot be read: {error.strerror}"
        # Outside the handlers, so that no traceback shows an error that holds a secret.
        raise ConfigurationError(message)

    @property
    def trusted_proxies(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """``TRUSTED_PROXIES`` as networks; a single address is a network of one."""
        return networks(self.TRUSTED_PROXIES)

    @property
    def on_network(self) -> bool:
        """Whether the keys are in a database that other nodes may share."""
        return self.DATABASE_URL.startswith("postgresql://")

    @property
    def max_stale_seconds(self) -> int:
        """``MAX_STALE_SECONDS``, or 0 when nothing stale is to be served."""
        return self.MAX_STALE_SECONDS if self.ON_STORE_OUTAGE == "serve-stale" else 0

    @property
    def authorize_metadata(self) -> tuple[str, ...]:
        """``AUTHORIZE_METADATA`` as names."""
        return names(self.AUTHORIZE_METADATA)


_OIDC: Final = ("OIDC_ISSUER", "OIDC_AUDIENCE", "OIDC_SCOPES")


@functools.cache
def _of_this_process() -> Settings:
    return Settings.load()


def shown(value: object) -> str:
    """Write a value as it stands in ``.env``: ``true``, ``0.2``, ``text``."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def allowed_values(name: str) -> str:
    """Say in words what a setting accepts.

    Args:
        name: the name of the setting.

    Returns:
        A phrase such as "a whole number from 5 to 5256000".
    """
    field = Settings.model_fields[name]
    if get_origin(field.annotation) is Literal:
        return " or ".join(str(value) for value in get_args(field.annotation))
    if field.annotation is bool:
        return "true or false"
    if field.annotation in (int, float):
        kind = "a whole number" if field.annotation is int else "a number"
        return f"{kind} from {_bound(field, at.Ge)} to {_bound(field, at.Le)}"
    words = [item.words for item in field.metadata if isinstance(item, Allowed)]
    return words[0] if words else "one line of text"


def _bound(field: FieldInfo, kind: type[at.Ge] | type[at.Le]) -> str:
    (limit,) = (item for item in field.metadata if isinstance(item, kind))
    return str(limit.ge if isinstance(limit, at.Ge) else limit.le)


def _first_problem(error: pydantic.ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    if not problem["loc"]:  # a rule about two settings, which names both and no value
        return problem["msg"].removeprefix("Value error, ")
    name = str(problem["loc"][0])
    return f"{name}{_given(name, problem['input'])} is not allowed: {allowed_values(name)}"


def _given(name: str, value: object) -> str:
    """The ``=value`` part of an error line, without what must not be shown."""
    text = shown(value)
    if name.endswith(("_URL", "_ADDR")):
        # A password may stand anywhere in what was meant as a URL.
        scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://", text)
        return f"={scheme[0]}…" if scheme else " (value not shown)"
    return f"={_shown_text(text)}" if Settings.model_fields[name].repr else " (value not shown)"


def _shown_text(text: str) -> str:
    """One short line, whatever the text is."""
    line = repr(text)
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
