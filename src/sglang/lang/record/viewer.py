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
.sglang-run{--text:#222;--soft:#666;--line:#ddd;--ground:#fff;--bar:#8ab4f8;--limited:#c9a0f0;--gen:#eafaf1;--name:#2b7a53;--light:85%;
font:14px/1.5 system-ui,sans-serif;margin:0 auto;padding:1em;max-width:70em;color:var(--text);background:var(--ground)}
@media(prefers-color-scheme:dark){.sglang-run{--text:#e6e6e6;--soft:#aaa;--line:#444;--ground:#1b1d21;--bar:#3f64a8;--limited:#75509b;--gen:#1f3329;--light:28%}}
.sglang-run h1{font-size:1.3em}.sglang-run h2{font-size:1.05em;margin:1.6em 0 .4em}
.sglang-run .text{white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,monospace;font-size:13px;border:1px solid var(--line);border-radius:6px;padding:.8em}
.sglang-run .gen{border-bottom:2px solid var(--name);background:var(--gen)}
.sglang-run .name{font:11px system-ui;color:#fff;background:var(--name);border-radius:3px;padding:0 .4em}
.sglang-run .branch{margin-left:1.5em;border-left:3px solid var(--line);padding-left:1em}
.sglang-run .fork,.sglang-run .note{font:11px system-ui;color:var(--soft);border:1px solid var(--line);border-radius:3px;padding:0 .4em;margin:0 .2em}
.sglang-run .error{color:#d33;font-weight:bold}
.sglang-run .lane{display:grid;grid-template-columns:minmax(6em,12em) 1fr;gap:.6em;align-items:center;margin:2px 0;font-size:12px}
.sglang-run .lane>:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.sglang-run .bar{position:relative;height:1.4em;border-left:1px solid var(--line);border-right:1px solid var(--line)}
.sglang-run .bar span{position:absolute;top:0;height:100%;background:var(--bar);border-radius:3px}.sglang-run .bar .limited{background:var(--limited)}
.sglang-run .axis{display:flex;justify-content:space-between;color:var(--soft)}.sglang-run .legend{color:var(--soft);font-size:12px}
.sglang-run table{border-collapse:collapse}.sglang-run td,.sglang-run th{padding:.1em .8em;text-align:right;border-bottom:1px solid var(--line)}
.sglang-run td:first-child,.sglang-run th:first-child{text-align:left}
"""
"""of the drawing alone: a notebook that shows it keeps its own look"""

_LIMITS = ("regex", "json_schema", "ebnf", "structural_tag")


def render_html(rows: Sequence[Row]) -> str:
    """The page of a recording (rows as read_recording gives them)."""
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>sglang run</title><style>body{{margin:0}}</style><body>{render_fragment(rows)}</body></html>'


def render_fragment(rows: Sequence[Row]) -> str:
    """The same as a part of another page, which it leaves as it is."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(str(row.get("run", "")), []).append(row)
    return _drawing("".join(_run(one) for one in runs.values()))


def _drawing(body: str) -> str:
    return f'<style>{_STYLE}</style><div class="sglang-run">{body}</div>'


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
    if row["kind"] == "fork":
        return f'<span class="fork">forks {html.escape(", ".join(map(str, row.get("children", ()))))}</span>'
    if row["kind"] != "call":
        return ""
    answer = row["value"]["answer"]
    name = f'<span class="name">{html.escape(str(row.get("name") or ""))}</span>'
    if row["value"]["kind"] == "select":
        choices = f'<span class="note">of {_choices_title(row)}</span>'
        return f'{name}<span class="gen">{html.escape(answer["decision"])}</span>{choices}'
    meta = answer["metas"][0] if answer["metas"] else {}
    limit = _limit(row)
    note = f'<span class="note" title="{html.escape(str(row["value"]["options"][limit]))}">{limit}</span>' if limit else ""
    return f'{name}{note}<span class="gen" title="{html.escape(_numbers(meta))}">{_tokens(answer["texts"][0], meta)}</span>'


def _limit(row: Row) -> str | None:
    """The kind of constraint that a call has."""
    options = row["value"].get("options") or {}
    return next((name for name in _LIMITS if options.get(name)), None)


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
        color = f"hsl({120 * probability:.0f} 80% var(--light))"
        shown.append(f'<span style="background:{color}" title="{probability:.3f}">{html.escape(token)}</span>')
    return "".join(shown)


def _numbers(meta: Row) -> str:
    keys = ("prompt_tokens", "cached_tokens", "completion_tokens")
    return ", ".join(f"{key.replace('_', ' ')}: {meta[key]}" for key in keys if meta.get(key) is not None)


def _time_line(calls: Iterable[Row]) -> str:
    """A lane for each call, from the first call's beginning to the last one's end, with what it was beside the lane."""
    calls = list(calls)
    begin = min(row.get("started") or 0.0 for row in calls)
    span = max(max(row.get("time", 0.0) for row in calls) - begin, 1e-6)
    lanes = []
    for row in calls:
        start, stop = (row.get("started") or 0.0) - begin, row.get("time", 0.0) - begin
        width = max(100 * (stop - start) / span, 0.3)
        left = min(100 * start / span, 100 - width)
        what = html.escape(f"{row.get('branch')} {row.get('name') or row['value']['kind']} {1000 * (stop - start):.0f} ms")
        kind = "limited" if _limit(row) or row["value"]["kind"] == "select" else ""
        bar = f'<span class="{kind}" style="left:{left:.2f}%;width:{width:.2f}%" title="{what}"></span>'
        lanes.append(f'<div class="lane"><span title="{what}">{what}</span><div class="bar">{bar}</div></div>')
    marks = "".join(f"<span>{1000 * span * part / 4:.0f} ms</span>" for part in range(5))
    axis = f'<div class="lane"><span></span><div class="axis">{marks}</div></div>'
    legend = '<p class="legend">blue: free text; violet: constrained or a choice; background of a token: green certain, red unlikely</p>'
    return axis + "".join(lanes) + legend


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
    output = given.output or given.recording.removesuffix(".jsonl") + ".html"
    try:
        page = render_html(read_recording(given.recording))
    except OSError as error:
        return _failed(f"{given.recording} cannot be read: {error.strerror}")
    except ValueError as error:
        return _failed(str(error))
    except (KeyError, TypeError, AttributeError) as error:
        return _failed(f"{given.recording} is no recording of this version: {error!r}")
    try:
        with open(output, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        return _failed(f"{output} cannot be written: {error.strerror}")
    print(output)
    return 0


def _failed(why: str) -> int:
    print(f"sglang trace: error: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
