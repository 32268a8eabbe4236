// A recording (a file of one JSON object a line) as the runs that live ones are: {id, title, calls, began}.

import { parseJson } from "../lib.js";

const BRANCH = /^0(\.\d{1,6}){0,24}$/;
const MAX_RUNS = 50;
const MAX_CALLS = 2000;
const MAX_TEXT = 200_000;
const MAX_CHOICES = 500;
const LARGEST = 1e12;

/** Throws an Error for what is no recording. */
export function readRecording(content) {
  const runs = new Map();
  let number = 0;
  for (let from = 0; from < content.length; ) {
    const end = content.indexOf("\n", from);
    const line = content.slice(from, end < 0 ? content.length : end);
    from = end < 0 ? content.length : end + 1;
    number += 1;
    if (line.trim()) takeLine(runs, line, number);
  }
  const found = [...runs.values()].filter((run) => run.calls.size);
  if (!found.length) throw new Error("there is no request in this recording");
  return found;
}

function takeLine(runs, line, at) {
  let row;
  try {
    row = parseJson(line);
  } catch (error) {
    throw new Error(`line ${at} is not JSON (${error.message.slice(0, 100)}): is this a recording?`);
  }
  if (typeof row !== "object" || row === null || typeof row.kind !== "string") throw new Error(`line ${at} is no event of a recording`);
  const id = text(row.run).slice(0, 100);
  if (!runs.has(id) && runs.size >= MAX_RUNS) return;
  if (!runs.has(id)) runs.set(id, { id, title: "", calls: new Map(), began: 0 });
  const run = runs.get(id);
  if (row.kind === "run") run.title = [row.program, row.backend, row.model].map(text).filter(Boolean).join(" · ").slice(0, 200);
  if (row.kind === "call" && run.calls.size >= MAX_CALLS) run.isCut = true;
  else if (row.kind === "call") run.calls.set(`${run.calls.size}`, callOf(row, run.calls.size));
}

const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) && Math.abs(value) < LARGEST ? value : null);
const member = (value) => (typeof value === "object" && value !== null ? value : {});
const list = (value) => (Array.isArray(value) ? value : []);

/** A call of a recording, which may say anything. */
function callOf(row, index) {
  const value = member(row.value);
  const [answer, options] = [member(value.answer), member(value.options)];
  const meta = member(list(answer.metas)[0] ?? answer.meta);
  const scores = list(member(answer.meta).normalized_prompt_logprobs);
  const [at, ended] = [number(row.started) ?? number(row.time) ?? 0, number(row.time) ?? number(row.started) ?? 0];
  return {
    rid: String(index),
    branch: BRANCH.test(text(row.branch)) ? row.branch : "0",
    name: text(row.name ?? value.kind).slice(0, 200),
    at,
    ended: Math.max(at, ended),
    prompt: text(row.text).slice(-MAX_TEXT),
    prompt_len: number(meta.prompt_tokens),
    cached: number(meta.cached_tokens),
    completion: number(meta.completion_tokens),
    text: text(answer.decision ?? list(answer.texts)[0]).slice(0, MAX_TEXT),
    constraint: ["regex", "json_schema", "ebnf", "structural_tag"].find((name) => options[name]) ?? false,
    choices: Array.isArray(options.choices) ? options.choices.slice(0, MAX_CHOICES).map((choice, i) => [text(choice), number(scores[i])]) : null,
    reason: text(member(meta.finish_reason).type),
  };
}
