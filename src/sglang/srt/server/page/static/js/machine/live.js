// The machine as the server tells of it: a mirror of the prefix tree, the last steps, the state.
import { Store } from "../lib.js";
import { events, send } from "../api.js";

const MAX_STEPS = 600;
const RATE_SECONDS = 2;

/** {error, connected, stats, latencies, omitted, late}; `nodes` and `steps` are read by those who draw, once a frame */
export const live = new Store({ error: null, connected: false, stats: null, latencies: null, omitted: 0, late: 0 });
/** id -> {id, parent, start, length, locked, hits, text, changed} */
export const nodes = new Map();
/** {decode, prompt, forced, draft, accepted, seconds, at}, oldest first */
export const steps = [];

/** run -> {id, calls: rid -> call, began}, newest last; a call {branch, rid, name, at, ended, prompt, text, ...} */
export const runs = new Map();
const MAX_RUNS = 50;
const MAX_CALLS = 2000;
/** Changes whenever a run does. */
export const runNews = new Store(0);

let abort = null;
let lookers = 0;

/** Begins to look, for as long as the returned function is not called. */
export function look() {
  lookers += 1;
  if (lookers === 1) connect();
  return () => {
    lookers -= 1;
    if (!lookers) abort?.abort();
  };
}

async function connect() {
  abort = new AbortController();
  const { signal } = abort;
  while (!signal.aborted) {
    try {
      const response = await send("/page/live", {}, signal);
      live.put({ error: null, connected: true });
      for await (const event of events(response)) take(event);
    } catch (error) {
      if (signal.aborted) break;
      live.put({ error: error.message, connected: false });
      if (error.status >= 400 && error.status < 500) return;
    }
    live.put({ connected: false });
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  live.put({ connected: false });
}

function take(event) {
  if (event.call) {
    noteCall(event.call);
    return;
  }
  const now = performance.now();
  if (event.first) nodes.clear();
  for (const [id, parent, start, length, locked, hits, text] of event.nodes) {
    const before = nodes.get(id);
    const changed = !event.first && (!before || before.length !== length || before.hits !== hits) ? now : (before?.changed ?? 0);
    nodes.set(id, { id, parent, start, length, locked, hits, text, changed });
  }
  for (const id of event.gone) nodes.delete(id);
  for (const [decode, prompt, forced, draft, accepted, seconds] of event.steps) steps.push({ decode, prompt, forced, draft, accepted, seconds, at: now });
  if (steps.length > MAX_STEPS) steps.splice(0, steps.length - MAX_STEPS);
  live.put({ stats: event.stats ?? live.value.stats, latencies: event.latencies ?? live.value.latencies, omitted: event.omitted ?? live.value.omitted, late: event.late ?? 0 });
}

function noteCall(call) {
  if (!/^0(\.|$)/.test(call.branch)) call.branch = "0"; // it is no program of ours
  if (!runs.has(call.run)) runs.set(call.run, { id: call.run, calls: new Map(), began: call.at ?? call.ended });
  const { calls } = runs.get(call.run);
  if (calls.has(call.rid)) Object.assign(calls.get(call.rid), call);
  else if (call.at !== undefined && calls.size < MAX_CALLS) calls.set(call.rid, call);
  while (runs.size > MAX_RUNS) runs.delete(runs.keys().next().value);
  runNews.set(runNews.value + 1);
}

/** Rows of the last seconds: {decode, prompt, steps, drafted, accepted} a second. */
export function rates() {
  const since = performance.now() - RATE_SECONDS * 1000;
  const recent = steps.filter((step) => step.at >= since);
  const sum = (name) => recent.reduce((total, step) => total + step[name], 0) / RATE_SECONDS;
  return { generated: sum("decode") + sum("accepted") + sum("forced"), prompt: sum("prompt"), steps: recent.length / RATE_SECONDS, draft: sum("draft"), accepted: sum("accepted") };
}
