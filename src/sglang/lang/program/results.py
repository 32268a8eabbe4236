"""A batch's results on disk, one JSON object a line, so that an interrupted batch can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from sglang.lang.program.options import BatchItem


def fingerprint(arguments: Any) -> str:
    """Equal for equal arguments of two runs of a batch."""
    value = dict(arguments) if isinstance(arguments, Mapping) else list(arguments)
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


class ResultFile:
    """Appends a line per finished item: {"index", "arguments", "fingerprint", "text", "variables", "meta"} or "error".

    With `resume`, items that the file has without an error, with the same arguments, are not run again. A line that a crash
    cut off is ignored. Without `resume`, an existing file is refused rather than mixed up or lost.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool) -> None:
        self._path = os.fspath(path)
        self._done: dict[int, str] = {}
        exists = os.path.exists(self._path) and os.path.getsize(self._path) > 0
        if exists and not resume:
            raise FileExistsError(f"{self._path} exists: pass resume=True to resume it, or another name")
        if exists:
            self._read()

    def _read(self) -> None:
        with open(self._path, encoding="utf-8") as file:
            text = file.read()
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and row.get("error") is None and isinstance(row.get("index"), int):
                self._done[row["index"]] = str(row.get("fingerprint"))
        if not text.endswith("\n"):
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("\n")

    def has(self, index: int, arguments: Any) -> bool:
        return self._done.get(index) == fingerprint(arguments)

    def write(self, item: BatchItem) -> None:
        row: dict[str, Any] = {
            "index": item.index,
            "arguments": item.arguments,
            "fingerprint": fingerprint(item.arguments),
        }
        if item.state is not None and item.error is None:
            executor = item.state.stream_executor
            row["text"] = executor.text
            row["variables"] = {str(name): value for name, value in executor.vars.texts.items()}
            row["meta"] = {str(name): meta for name, meta in executor.vars.metas.items()}
        row["error"] = None if item.error is None else f"{type(item.error).__name__}: {item.error}"
        with open(self._path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(row, ensure_ascii=False, default=repr) + "\n")
