"""Pages of the site that are no files of docs/, a hook of MkDocs (mkdocs.yml): the HTTP reference, made from the routes of the server,
and the texts at the root of the tree. Links of pages to files that are not on the site become their names."""

from __future__ import annotations

import asyncio
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
AT_THE_ROOT = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
METHODS = ("get", "post", "put", "delete", "patch")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in AT_THE_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    document = openapi()
    files.append(File.generated(config, "reference/openapi.json", content=json.dumps(document, indent=1)))
    files.append(File.generated(config, "reference/http.md", content=http_reference(document)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as seen from the page's place in the tree; pages at the root lie beside docs/."""
    here = next((source for source, name in AT_THE_ROOT.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")

    def site_link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if re.match(r"\w+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        path = AT_THE_ROOT.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if files.get_file_from_path(path) is None:
            return f"`{text}`" if "`" not in text else text
        return f"[{text}]({posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(site_link, markdown)


def openapi() -> dict[str, Any]:
    """The document that a server of a text model serves at /openapi.json."""
    from sglang.srt.config import HttpOptions
    from sglang.srt.server.http.app import create_app

    app = create_app(cast(Any, SimpleNamespace(media=None, tokenizer=None, adapters=None)), HttpOptions())

    async def ask() -> dict[str, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:30000") as client:
            reply = await client.get("/openapi.json")
            reply.raise_for_status()
            return cast(dict[str, Any], reply.json())

    return asyncio.run(ask())


def http_reference(document: dict[str, Any]) -> str:
    lines = [
        "# HTTP reference",
        "",
        "Made from the routes of the server when this site is built; a running server has the same at `/openapi.json` and, to try, at",
        "`/docs`. [API by example](../api.md) explains what the fields do. This document for programs: [openapi.json](openapi.json).",
        "",
    ]
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                lines += operation_text(document, method, path, operations[method])
    return "\n".join(lines) + "\n"


def operation_text(document: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"## {method.upper()} {path}"
    yield ""
    yield from (text for text in (operation.get("summary"), operation.get("description")) if text)
    yield ""
    for parameter in operation.get("parameters", ()):
        yield f"- `{parameter['name']}` ({parameter['in']}): {kind(document, parameter.get('schema', {}))}"
    content = resolved(document, operation.get("requestBody", {})).get("content", {})
    for media_type, body in content.items():
        yield from body_text(document, media_type, resolved(document, body.get("schema", {})))


def body_text(document: dict[str, Any], media_type: str, schema: dict[str, Any]) -> Iterator[str]:
    fields: dict[str, Any] = schema.get("properties", {})
    yield f"Body: `{media_type}`" + ("" if fields else f", {kind(document, schema)}")
    yield ""
    if not fields:
        return
    yield "| field | | |"
    yield "|---|---|---|"
    needed = schema.get("required", ())
    for name, field in fields.items():
        notes = [note for note in ("required" if name in needed else "", default(field), described(document, field)) if note]
        yield f"| `{name}` | {kind(document, field)} | {'; '.join(notes)} |"
    yield ""


def default(field: dict[str, Any]) -> str:
    return f"default `{json.dumps(field['default'])}`" if field.get("default") is not None else ""


def described(document: dict[str, Any], field: dict[str, Any]) -> str:
    text = field.get("description") or ""
    return " ".join(str(text).split()).replace("|", "\\|")


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def kind(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> str:
    """A schema in a few words."""
    schema = resolved(document, schema)
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        words = [kind(document, choice, depth) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]) if value is not None)
    if schema.get("type") == "array":
        return "list of " + (kind(document, schema.get("items", {}), depth + 1) if depth < 2 else "values")
    found = schema.get("type", "any value")
    return " or ".join(found) if isinstance(found, list) else str(found)
