"""Counts the schemas of a corpus that can be followed.

    .venv-test/bin/python -m benchmarks.schema_corpus FOLDER... [--engine xgrammar] [--reasons]

Folders of JSON schemas, one a file, such as JSONSchemaBench's `data` or SchemaStore's `src/schemas`; files of JSON-Schema-Test-Suite and
of MaskBench, which hold instances as well, are read too. For every folder:

    enforced    decoding follows the whole schema
    checked     decoding follows what it can, and the answer is checked at the end
    refused     400, and with --reasons the most frequent of them

Of instances: how many valid ones may be generated, and how many invalid ones of enforced schemas (there must be none).
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from benchmarks.schema_suite import BYTES, END
from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError
from sglang.srt.json_style import JsonStyle, with_style
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend, GrammarState
from sglang.srt.scheduler.grammar.engines.registry import create_backend

CHECKED = JsonStyle(check=True)
SHOWN = 12
Case = tuple[Any, list[tuple[Any, bool]]]
"""a schema, and instances with whether they are valid"""


def cases_of(path: Path) -> Iterator[Case]:
    """What a file holds; nothing if that is no JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return
    groups = value if isinstance(value, list) else [value]
    for group in groups:
        if isinstance(group, dict) and isinstance(group.get("tests"), list) and "schema" in group:
            yield group["schema"], [(test["data"], bool(test["valid"])) for test in group["tests"]]
        else:
            yield group, []


def takes(state: GrammarState, value: Any) -> bool:
    """Whether the value, as Python writes it, is a whole output."""
    if not state.accept_all(list(json.dumps(value, ensure_ascii=False).encode(errors="replace"))):
        return False
    mask = np.zeros(9, np.uint32)
    state.fill_mask(mask)
    return state.is_finished or bool(mask[END // 32] >> (END % 32) & 1)


def measure(backend: GrammarBackend, folder: Path) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """(counts, reasons of refusals with their paths left out)"""
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    limit = GrammarOptions().max_bytes
    for path in sorted(folder.rglob("*.json")):
        for schema, instances in cases_of(path):
            text = json.dumps(schema)
            try:
                if len(text) > limit:
                    raise GrammarError("too many bytes")
                state = backend.compile("json_schema", with_style(text, CHECKED))
            except GrammarError as error:
                counts["refused"] += 1
                reasons[re.sub(r"#\S*|'[^']*'|\d+", "...", str(error))[:100]] += 1
                continue
            kind = "checked" if state.unenforced else "enforced"
            counts[kind] += 1
            for value, is_valid in instances:
                taken = takes(state.copy(), value)
                counts[f"{kind}: {'valid' if is_valid else 'invalid'}, {'taken' if taken else 'left out'}"] += 1
    return counts, reasons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--engine", choices=["llguidance", "xgrammar"], default="llguidance")
    parser.add_argument("--reasons", action="store_true")
    args = parser.parse_args()
    engine = cast(Literal["llguidance", "xgrammar"], args.engine)
    backend = create_backend(BYTES, GrammarOptions(backend=engine), threads=False)
    assert backend is not None
    for folder in args.folders:
        began = time.process_time()
        counts, reasons = measure(backend, folder)
        total = sum(counts[kind] for kind in ("enforced", "checked", "refused"))
        shares = ", ".join(f"{kind} {counts[kind] / max(total, 1):.1%}" for kind in ("enforced", "checked", "refused"))
        print(f"{folder}: {total} schemas in {time.process_time() - began:.0f} s: {shares}")
        print("   ", ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
        for reason, count in reasons.most_common(SHOWN if args.reasons else 0):
            print(f"    {count:5} {reason}")


if __name__ == "__main__":
    main()
