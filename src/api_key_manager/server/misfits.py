"""What to say of a body that fits no shape: which field, and what is wrong with it."""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec
from msgspec import Struct

from api_key_manager.core.models import Reason
from api_key_manager.server.errors import ProblemError

__all__ = ["misfit", "unusable"]

_read_misfit: Final = re.compile(
    r"(?P<told>.*?)(?: - at `\$\.?(?P<place>.*)`)?", re.DOTALL
).fullmatch
_read_name: Final = re.compile(
    r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL
).fullmatch


def misfit(error: Exception, body: bytes, shape: type[Struct]) -> ProblemError:
    """Say what is wrong with a body that could not be decoded."""
    if not isinstance(error, msgspec.ValidationError):
        again = _of_constants(body, shape)
        if again is None:
            return ProblemError(400, "malformed", "The body is not JSON.")
        error = again
    found = _read_misfit(str(error))
    told, place = (found["told"], found["place"] or "") if found else (str(error), "")
    named = _read_name(told)
    if named is not None:
        place = f"{place}.{named[1][:64]}".lstrip(".")
        told = "it is missing" if "missing" in told else "there is no such field"
    return unusable(place or "body", told.replace("`", "").lower())


def _of_constants(body: bytes, shape: type[Struct]) -> msgspec.ValidationError | None:
    """``NaN`` and ``Infinity`` are no JSON, but many writers take them for numbers; whoever sends
    one is told where it stands."""
    met = []

    def constant(name: str) -> float:
        met.append(name)
        return float(name)

    try:
        value = json.loads(body, parse_constant=constant)
        if met:
            msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        return error
    except (ValueError, RecursionError):
        return None
    return None


def unusable(field: str, told: str) -> ProblemError:
    """A value that cannot be used; ``field`` names it."""
    return ProblemError(422, Reason.MALFORMED.value, f"{field}: {told}", field=field)
