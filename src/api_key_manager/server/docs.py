"""``/docs``: the OpenAPI document as one page of HTML that loads nothing from anywhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from api_key_manager.server.examples import EXAMPLES

__all__ = ["CONTENT_SECURITY_POLICY", "render"]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
)

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; }
details > :not(summary) { margin: .75rem 1rem; }
summary { padding: .5rem 1rem; cursor: pointer; }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: 6px; padding: .75rem; overflow-x: auto; }
table { border-collapse: collapse; width: calc(100% - 2rem); }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--line); }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
.scope { float: right; opacity: .75; }
"""


def render(document: dict[str, Any]) -> str:
    """The page.

    Args:
        document: the OpenAPI document.
    """
    schemas = document["components"]["schemas"]
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            shown = _operation(method.upper(), path, operation, schemas)
            by_tag.setdefault(operation["tags"][0], []).append(shown)
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in by_tag.items())
    shapes = "".join(_shape(name, schema) for name, schema in sorted(schemas.items()))
    refusals = "".join(
        _refusal(status, response)
        for status, response in document["components"]["responses"].items()
    )
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{_prose(document['info']['description'])}</p>"
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"{sections}<h2>Refusals</h2>{refusals}<h2>Shapes</h2>{shapes}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    scope = operation.get("x-scope")
    parts = [
        f'<details id="{operation["operationId"]}"><summary><span class="method">{method}</span>',
        f" <code>{escape(path)}</code>",
        f' <span class="scope">{escape(scope or "open to all")}</span></summary>',
        f"<p>{_prose(operation.get('description') or operation.get('summary', ''))}</p>",
    ]
    if operation.get("parameters"):
        rows = [
            (f"{p['name']} ({p['in']})", _type(p["schema"]), p.get("description", ""))
            for p in operation["parameters"]
        ]
        parts.append(_table(rows))
    body = _json_schema(operation.get("requestBody", {}))
    if body:
        parts.append(f"<p>Body: {_type(body)}</p>")
    refusals = []
    for status, response in operation["responses"].items():
        if "$ref" in response:
            refusals.append(f'<a href="#refusal-{escape(status)}">{escape(status)}</a>')
            continue
        schema = _json_schema(response)
        parts.append(f"<p>{escape(status)}: {_type(schema) if schema else 'no body'}</p>")
    if refusals:
        parts.append(f"<p>Refusals: {', '.join(refusals)}</p>")
    parts.append(f"<pre>{escape(_curl(method, path, scope, body, schemas))}</pre></details>")
    return "".join(parts)


def _json_schema(holder: dict[str, Any]) -> dict[str, Any] | None:
    for media in holder.get("content", {}).values():
        schema: dict[str, Any] = media["schema"]
        return schema
    return None


def _curl(
    method: str, path: str, scope: str | None, body: dict[str, Any] | None, schemas: dict[str, Any]
) -> str:
    words = ["curl -s" if method == "GET" else f"curl -s -X {method}"]
    if scope is not None:
        words.append('-H "Authorization: Bearer $AKM_TOKEN"')
    if body is not None:
        example = json.dumps(EXAMPLES.get(_name(body), {}))
        words.append(f"-H 'Content-Type: application/json' -d '{example}'")
    return " ".join([*words, f'"$AKM_URL{path}"'])


def _refusal(status: str, response: dict[str, Any]) -> str:
    (media,) = response["content"].values()
    reasons = media["schema"]["allOf"][1]["properties"]["reason"]["enum"]
    told = ", ".join(f"<code>{escape(reason)}</code>" for reason in reasons)
    example = escape(json.dumps(media["example"], indent=2))
    return (
        f'<details id="refusal-{escape(status)}"><summary>{escape(status)} {told}</summary>'
        f"<p>{_prose(response['description'])}</p><pre>{example}</pre></details>"
    )


def _shape(name: str, schema: dict[str, Any]) -> str:
    if "enum" in schema:
        values = ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
        return f'<details id="{name}"><summary>{name}</summary><p>{values}</p></details>'
    required = schema.get("required", [])
    rows = [
        (field + ("" if field in required else "?"), _type(part), part.get("description", ""))
        for field, part in schema.get("properties", {}).items()
    ]
    told = _prose(schema.get("description", ""))
    examples = "".join(
        f"<pre>{escape(json.dumps(example, indent=2))}</pre>"
        for example in schema.get("examples", ())
    )
    return (
        f'<details id="{name}"><summary>{name}</summary>'
        f"<p>{told}</p>{_table(rows)}{examples}</details>"
    )


def _table(rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{_prose(told)}</td></tr>"
        for name, kind, told in rows
    )
    return f"<table>{cells}</table>"


def _name(schema: dict[str, Any]) -> str:
    for part in (schema, *schema.get("anyOf", ())):
        if "$ref" in part:
            return str(part["$ref"]).rsplit("/", 1)[-1]
    return ""


def _type(schema: dict[str, Any]) -> str:
    """The type in words, as HTML."""
    if "$ref" in schema:
        name = escape(_name(schema))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if "prefixItems" in schema:
        return " and ".join(_type(part) for part in schema["prefixItems"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "any")))


def _prose(text: str) -> str:
    """Escaped text, with what stands in backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
