// A recording (a file of one JSON object a line) as the runs that live ones are: {id, title, calls, began}.

import { partsOf, pathOfModel } from "../api.js";
import { plainSampling } from "../chat/options.js";
import { GEN } from "../code_forms.js";
import { parseJson } from "../lib.js";

const BRANCH = /^0(\.\d{1,6}){0,24}$/;
const MAX_RUNS = 50;
const MAX_CALLS = 2000;
const MAX_TEXT = 200_000;
const MAX_CHOICES = 500;
const MAX_IMAGES = 100;
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
  if (!runs.has(id)) runs.set(id, { id, title: "", calls: new Map(), began: 0, images: new Map() });
  const run = runs.get(id);
  if (row.kind === "image") run.images.set(text(row.name), text(row.value));
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
    recorded: { prompt: text(row.text), options, images: list(value.images).slice(0, MAX_IMAGES), isUnconditional: "unconditional_token_logprobs" in member(answer.meta) },
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

/** The request of a call, as code_forms.js has it: what was asked then, of the server that is here now. */
export function recordedRequest(run, { recorded: { prompt, options, images: all, isUnconditional } }) {
  const model = partsOf().base;
  const omitted = [];
  const images = all.map((image, i) => sourceOf(run, member(image), `image-${i + 1}`, omitted));
  const adapter = text(options.lora) ? { lora_path: options.lora } : {};
  const beside = { ...(images.length && { image_data: images }), ...adapter };
  const told = { model, omitted, notes: run.title ? [`recorded: ${run.title}`] : [] };
  const path = (name) => pathOfModel(model, name);
  if (!Array.isArray(options.choices)) {
    const entries = Object.entries({ max_new_tokens: 128, ...plainSampling(), ...options }).filter(([name]) => name === "max_new_tokens" || GEN.has(name));
    const [own, params] = [true, false].map((is) => Object.fromEntries(entries.filter(([name]) => BESIDE.has(name) === is)));
    return { ...told, path: path("/generate"), body: { text: prompt, sampling_params: params, ...own, ...beside } };
  }
  const choices = options.choices.map(text);
  const scores = { text: prompt, choices, ...(isUnconditional && { unconditional: true }), ...adapter };
  if (!images.length) return { ...told, path: path("/score_choices"), body: scores };
  const texts = [prompt, ...choices.map((choice) => prompt + choice)];
  const each = Object.fromEntries(Object.entries(beside).map(([name, value]) => [name, texts.map(() => value)]));
  const body = { text: texts, sampling_params: { max_new_tokens: 0, temperature: 0 }, return_logprob: true, logprob_start_len: 0, ...each };
  return { ...told, path: path("/generate"), body, scores };
}

const BESIDE = new Set(["return_logprob", "logprob_start_len", "top_logprobs_num"]);

/** The data of an image if the recording has them; else its name, and what is known of it in `omitted`. */
function sourceOf(run, { sha256, size, url }, name, omitted) {
  const data = text(url) || run.images.get(text(sha256));
  if (data) return data;
  omitted.push({ name, size: number(size) ?? 0, sha256: /^[0-9a-f]{64}$/.test(text(sha256)) ? sha256 : "unknown" });
  return name;
}
