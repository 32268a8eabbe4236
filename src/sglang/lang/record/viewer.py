"""Renders a recorded run as one self-contained HTML page: the prompt with the generated text, coloured by token probability, the
tree of forks, and a timeline of the requests."""

from __future__ import annotations

import argparse
import html
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sglang.lang.record.recording import read_recording

Row = Mapping[str, Any]

_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;color:#222;background:#fff}
h1{font-size:1.3em}h2{font-size:1.05em;margin:1.6em 0 .4em}
.text{white-space:pre-wrap;font-family:ui-monospace,monospace;font-size:13px;border:1px solid #ddd;border-radius:6px;padding:.8em}
.gen{border-bottom:2px solid #3a7;background:#eafaf1}.name{font:11px system-ui;color:#fff;background:#3a7;border-radius:3px;padding:0 .4em}
.branch{margin-left:1.5em;border-left:3px solid #ccd;padding-left:1em}.error{color:#b00;font-weight:bold}
.bar{position:relative;height:1.5em;background:#f4f4f4;margin:2px 0}.bar span{position:absolute;top:0;height:100%;background:#8cf;overflow:visible;white-space:nowrap;font-size:12px}
table{border-collapse:collapse}td,th{padding:.1em .8em;text-align:right;border-bottom:1px solid #eee}td:first-child,th:first-child{text-align:left}
"""


def render_html(rows: Sequence[Row]) -> str:
    """The page of a recording (rows as read_recording gives them)."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(str(row.get("run", "")), []).append(row)
    body = "".join(_run(one) for one in runs.values())
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>sglang run</title><style>{_STYLE}</style><body>{body}</body></html>'


def _run(rows: Sequence[Row]) -> str:
    head = next((row for row in rows if row["kind"] == "run"), {})
    title = " · ".join(str(head[key]) for key in ("program", "backend", "model") if head.get(key)) or "run"
    events = [row for row in rows if row["kind"] != "run"]
    calls = [row for row in events if row["kind"] == "call"]
    parts = [f"<h1>{html.escape(title)}</h1>", _branch("0", events)]
    if calls:
        parts += ["<h2>Time line</h2>", _time_line(calls), "<h2>Calls</h2>", _table(calls)]
    return "".join(parts)


def _branch(branch: str, events: Sequence[Row]) -> str:
    """A branch's text, and below it its forks."""
    mine = [row for row in events if row.get("branch") == branch]
    spans = "".join(_span(row) for row in mine)
    label = "" if branch == "0" else f"<h2>fork {html.escape(branch)}</h2>"
    children = [child for row in mine if row["kind"] == "fork" for child in row.get("children", ())]
    below = "".join(f'<div class="branch">{_branch(child, events)}</div>' for child in children)
    return f'{label}<div class="text">{spans}</div>{below}'


def _span(row: Row) -> str:
    if row["kind"] == "text":
        return html.escape(row.get("text", ""))
    if row["kind"] == "error":
        return f'<div class="error">{html.escape(row.get("text", ""))}</div>'
    if row["kind"] != "call":
        return ""
    answer = row["value"]["answer"]
    name = f'<span class="name">{html.escape(str(row.get("name") or ""))}</span>'
    if row["value"]["kind"] == "select":
        return f'{name}<span class="gen" title="{_choices_title(row)}">{html.escape(answer["decision"])}</span>'
    meta = answer["metas"][0] if answer["metas"] else {}
    return f'{name}<span class="gen" title="{html.escape(_numbers(meta))}">{_tokens(answer["texts"][0], meta)}</span>'


def _choices_title(row: Row) -> str:
    scores = row["value"]["answer"]["meta"].get("normalized_prompt_logprobs") or []
    pairs = zip(row["value"]["options"]["choices"], scores, strict=False)
    return html.escape(", ".join(f"{choice!r}: {score:.3f}" for choice, score in pairs))


def _tokens(text: str, meta: Row) -> str:
    """The text; with log probabilities and token texts, each token on a colour from red (unlikely) to green (certain)."""
    entries = meta.get("output_token_logprobs") or []
    tokens = [str(entry[2]) for entry in entries if entry[2] is not None]
    if not entries or not "".join(tokens).startswith(text):
        return html.escape(text)
    shown, left = [], len(text)
    for entry, token in zip(entries, tokens, strict=False):
        token = token[:left]
        left -= len(token)
        probability = math.exp(entry[0]) if entry[0] is not None else 1.0
        colour = f"hsl({120 * probability:.0f} 80% 85%)"
        shown.append(f'<span style="background:{colour}" title="{probability:.3f}">{html.escape(token)}</span>')
    return "".join(shown)


def _numbers(meta: Row) -> str:
    keys = ("prompt_tokens", "cached_tokens", "completion_tokens")
    return ", ".join(f"{key.replace('_', ' ')}: {meta[key]}" for key in keys if meta.get(key) is not None)


def _time_line(calls: Iterable[Row]) -> str:
    calls = list(calls)
    end = max(row.get("time", 0.0) for row in calls) or 1.0
    bars = []
    for row in calls:
        start, stop = row.get("started", 0.0), row.get("time", 0.0)
        label = html.escape(f"{row.get('branch')} {row.get('name') or row['value']['kind']} {1000 * (stop - start):.0f} ms")
        style = f"left:{100 * start / end:.2f}%;width:{max(100 * (stop - start) / end, 0.2):.2f}%"
        bars.append(f'<div class="bar"><span style="{style}">{label}</span></div>')
    return "".join(bars)


def _table(calls: Iterable[Row]) -> str:
    rows = []
    for row in calls:
        metas = row["value"]["answer"].get("metas") or [{}]
        cells = [row.get("branch"), row.get("name") or row["value"]["kind"]]
        cells += [metas[0].get(key, "") for key in ("prompt_tokens", "cached_tokens", "completion_tokens")]
        cells.append(f"{1000 * (row.get('time', 0.0) - row.get('started', 0.0)):.0f}")
        rows.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("branch", "variable", "prompt", "cached", "written", "ms"))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def main(arguments: list[str]) -> int:
    """`sglang trace view run.jsonl [-o run.html]`. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="sglang trace", description="View recorded runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    view = commands.add_parser("view", help="render a recording as an HTML page")
    view.add_argument("recording", metavar="RECORDING", help="a file that a recorded run wrote")
    view.add_argument("-o", "--output", help="where to write the page (default: beside the recording)")
    given = parser.parse_args(arguments)
    try:
        page = render_html(read_recording(given.recording))
    except (OSError, ValueError) as error:
        print(f"sglang trace: error: {error}", file=sys.stderr)
        return 1
    output = given.output or given.recording.removesuffix(".jsonl") + ".html"
    with open(output, "w", encoding="utf-8") as file:
        file.write(page)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
