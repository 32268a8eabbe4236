// The machine as the server tells of it: of each replica a mirror of its prefix tree, its last steps, its state.
import { Store } from "../lib.js";
import { events, getKey, loadServer, partsOf, pathOf, pathOfModel, postJson, send } from "../api.js";

const MAX_STEPS = 600;
const RATE_SECONDS = 2;

/** {error, connected, latencies, model, replica}: the model that is looked at, null for the chosen one, and which of its replicas is
 * drawn. What the replicas are is read by those who draw, once a frame. */
export const live = new Store({ error: null, connected: false, latencies: null, model: null, replica: 0 });

/** nodes: id -> {id, parent, start, length, locked, hits, text, changed}; steps {decode, prompt, forced, draft, accepted, seconds, at},
 * oldest first */
const freshReplica = () => ({ nodes: new Map(), steps: [], stats: null, omitted: 0, late: 0, latencies: null });

/** number -> what is known of a replica; the first is there before anything is known */
export const replicas = new Map([[0, freshReplica()]]);
/** Nodes and steps of the replica that is drawn. */
export let { nodes, steps } = replicas.get(0);
export const shownReplica = () => replicas.get(live.value.replica) ?? replicas.get(0);

/** Draws another replica. */
export function showReplica(number) {
  live.put({ replica: number });
  const { latencies } = shownReplica();
  ({ nodes, steps } = shownReplica());
  live.put({ latencies });
}

function addReplica(number) {
  replicas.set(number, freshReplica());
  showReplica(live.value.replica); // the one that is to be drawn may be there from now on
}

function forgetReplicas() {
  replicas.clear();
  addReplica(0);
}

/** run -> {id, model, calls: rid -> call, began}, newest last: `model` is the one whose server it runs on; a call {branch, rid, name, at, seen, ended, prompt, text, ...},
 * with times of the server's clock, but `seen`: when it was told of, by the browser's. */
export const runs = new Map();
const MAX_RUNS = 50;
const MAX_CALLS = 2000;
/** why a call is over of whose end nothing was told */
export const UNSEEN = "unseen";
/** Changes whenever a run does. */
export const runNews = new Store(0);

let abort = null;
let lookers = 0;

/** Changes if what is looked at has to be asked for anew: by another path or key, or of a server that refused before. */
export const placeOf = (known) => known && [pathOf("/page/live", known), known.status, getKey()].join(" ");

/** Begins to look, for as long as the returned function is not called; not before it is `known` what is served. */
export function look(known) {
  if (!known) return undefined;
  lookers += 1;
  if (lookers === 1) connect();
  return () => {
    lookers -= 1;
    if (lookers) return;
    abort?.abort();
    live.put({ connected: false });
  };
}

/** Looks at another of several models behind one address. */
export function lookAt(model) {
  if (model === live.value.model) return;
  abort?.abort();
  live.put({ model, error: null, connected: false, latencies: null, replica: 0 });
  forgetReplicas();
  if (lookers) connect();
}

const livePath = () => (live.value.model === null ? pathOf("/page/live") : pathOfModel(live.value.model, "/page/live"));

async function connect() {
  abort = new AbortController();
  const { signal } = abort;
  let wasAway = false;
  while (!signal.aborted) {
    try {
      const response = await send(livePath(), {}, signal);
      if (wasAway) loadServer(); // what was started anew may serve something else
      wasAway = false;
      forgetReplicas();
      live.put({ error: null, connected: true });
      for await (const event of events(response)) if (!signal.aborted) take(event);
    } catch (error) {
      if (signal.aborted) break;
      live.put({ error: error.message, connected: false });
      if (error.status >= 400 && error.status < 500) return;
    } finally {
      endUnseen();
    }
    if (signal.aborted) break;
    wasAway = true;
    live.put({ connected: false });
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function take(event) {
  if (event.call) {
    noteCall(event.call);
    return;
  }
  const number = event.replica ?? 0;
  if (!replicas.has(number)) addReplica(number);
  const replica = replicas.get(number);
  takeNodes(replica.nodes, event);
  const at = performance.now();
  for (const [decode, prompt, forced, draft, accepted, seconds] of event.steps) replica.steps.push({ decode, prompt, forced, draft, accepted, seconds, at });
  if (replica.steps.length > MAX_STEPS) replica.steps.splice(0, replica.steps.length - MAX_STEPS);
  replica.stats = event.stats ?? replica.stats;
  replica.omitted = event.omitted ?? replica.omitted;
  replica.late = event.late ?? 0;
  replica.latencies = event.latencies ?? replica.latencies;
  live.put({ latencies: shownReplica().latencies });
}

function takeNodes(all, event) {
  const now = performance.now();
  if (event.first) all.clear();
  for (const [id, parent, start, length, locked, hits, text] of event.nodes) {
    const before = all.get(id);
    const changed = !event.first && (!before || before.length !== length || before.hits !== hits) ? now : (before?.changed ?? 0);
    all.set(id, { id, parent, start, length, locked, hits, text, changed });
  }
  for (const id of event.gone) all.delete(id);
}

function noteCall(call) {
  if (!/^0(\.|$)/.test(call.branch)) call.branch = "0"; // it is no program of ours
  if (call.at !== undefined) call.seen = Date.now() / 1000;
  if (!runs.has(call.run) && call.at === undefined) return; // it began before anybody looked here
  if (!runs.has(call.run)) runs.set(call.run, { id: call.run, model: live.value.model ?? partsOf().base, calls: new Map(), began: call.at ?? call.ended });
  const { calls } = runs.get(call.run);
  if (call.choice_of) noteChoice(calls, call);
  else if (calls.has(call.rid)) Object.assign(calls.get(call.rid), call);
  else if (call.at !== undefined && calls.size < MAX_CALLS) calls.set(call.rid, call);
  while (runs.size > MAX_RUNS) runs.delete(runs.keys().next().value);
  runNews.set(runNews.value + 1);
}

/** Now, by the clock of the server, for a call that runs. */
export const nowFor = (call) => call.at + Date.now() / 1000 - call.seen;

/** The server tells only of ends of what began while it was looked at. */
function endUnseen() {
  for (const { calls } of runs.values()) for (const call of calls.values()) if (!call.ended) Object.assign(call, { ended: nowFor(call), reason: UNSEEN });
  runNews.set(runNews.value + 1);
}

/** The request of a call, as code_forms.js has it. Throws an ApiError if the server does not have it any more. */
export async function requestOf(run, call) {
  const { path, unsaid, ...told } = await postJson(pathOfModel(run.model, "/page/request"), { rid: call.rid });
  return { ...told, model: run.model, path: pathOfModel(run.model, path), notes: unsaid.map((what) => `${what}, which this request does not say`) };
}

/** The choices of a `select` are requests of their own; together they are one call. */
function noteChoice(calls, { choice_of: rid, rid: own, choice, score, ended, cached, reason, ...begun }) {
  if (!calls.has(rid) && (choice === undefined || calls.size >= MAX_CALLS)) return;
  if (!calls.has(rid)) calls.set(rid, { ...begun, rid, scores: new Map(), choices: [] });
  const call = calls.get(rid);
  if (choice !== undefined) call.scores.set(own, [choice, null]);
  const entry = call.scores.get(own);
  if (ended !== undefined && entry) {
    entry[1] = score ?? null;
    entry[2] = ended;
    Object.assign(call, { cached: Math.max(call.cached ?? 0, cached), reason });
  }
  const scores = [...call.scores.values()];
  const isOver = scores.every((one) => one[2] !== undefined);
  call.choices = scores.map(([text, logprob]) => [text, logprob]);
  if (isOver) Object.assign(call, { ended: Math.max(...scores.map((one) => one[2])), text: call.unconditional ? "" : best(call.choices) });
}

const best = (choices) => choices.reduce((a, b) => ((b[1] ?? -Infinity) > (a[1] ?? -Infinity) ? b : a))[0];

/** Rows of the last seconds of a replica: {generated, prompt, steps, draft, accepted} a second. */
export function rates(replica = shownReplica()) {
  const since = performance.now() - RATE_SECONDS * 1000;
  const recent = replica.steps.filter((step) => step.at >= since);
  const sum = (name) => recent.reduce((total, step) => total + step[name], 0) / RATE_SECONDS;
  return { generated: sum("decode") + sum("accepted") + sum("forced"), prompt: sum("prompt"), steps: recent.length / RATE_SECONDS, draft: sum("draft"), accepted: sum("accepted") };
}
