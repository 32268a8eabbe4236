// An answer on its way: the request, its stream, and what is noted of it.
import { CHAT, events, loadServer, modelOf, send, server } from "../api.js";
import { add, growing, keep, pathTo, systemOf, touch } from "./conversations.js";
import { announce, parseJson } from "../lib.js";
import { options, tokenView, toolsOf } from "./options.js";

export const NUM_ALTERNATIVES = 8;
/** An answer does not wait longer until it is written: a browser may never say. */
const KEEP_MS = 3000;

export const isRunning = (node) => growing.has(node.id);

export function stop(node) {
  growing.get(node.id)?.abort.abort();
}

/** A file in a message: between fences that are longer than any in it. */
function fenced({ name, text }) {
  const longest = Math.max(2, ...(text.match(/`{3,}/g) ?? []).slice(0, 10_000).map((ticks) => ticks.length));
  const fence = "`".repeat(longest + 1);
  return `${name}:\n${fence}\n${text}\n${fence}`;
}

function contentOf(node) {
  const text = [...(node.files ?? []).map((file) => fenced(file)), node.content].filter(Boolean).join("\n\n");
  if (!node.images?.length) return text;
  const images = node.images.map((url) => ({ type: "image_url", image_url: { url } }));
  return [...images, ...(text ? [{ type: "text", text }] : [])];
}

function messageOf(node) {
  if (node.role === "tool") return { role: "tool", tool_call_id: node.callId, content: node.content };
  const message = { role: node.role, content: contentOf(node) };
  if (node.role === "assistant" && node.calls?.length) {
    message.tool_calls = node.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
    if (!message.content) message.content = null;
  }
  return message;
}

/** What an answer is asked for with, beside its branch: {system, begun, fields}. `begun`: its beginning, which it goes on from.
 * Throws an Error if the options are wrong. */
function termsFor(conversation, begun = "") {
  const set = options.value;
  const fields = { model: modelOf(server.value) ?? "default", ...set.sampling };
  const stops = set.stop.split("\n").filter(Boolean);
  if (stops.length) fields.stop = stops;
  const tools = toolsOf(set.tools);
  if (tools) fields.tools = tools;
  if (set.thinking !== null) fields.chat_template_kwargs = { enable_thinking: set.thinking };
  return { system: systemOf(conversation), begun, fields };
}

/** The request on these terms for an answer to the branch that ends at `parent`. */
function requestOn({ system, begun, fields }, conversation, parent) {
  const { model, messages: _, ...others } = fields;
  const messages = pathTo(conversation, parent).map(messageOf);
  if (system.trim()) messages.unshift({ role: "system", content: system });
  if (!begun) return { model, messages, ...others };
  return { model, messages: [...messages, { role: "assistant", content: begun }], ...others, continue_final_message: true };
}

/** The request behind an answer. For one that was written by hand, or of which it is not known: the request by the options that are set. */
export function requestOf(conversation, node) {
  return requestOn(termsOf(node) ?? termsFor(conversation), conversation, node.parent);
}

function termsOf(node) {
  if (!node.terms) return null;
  try {
    const { system, begun, fields } = parseJson(node.terms);
    return { system: String(system), begun: String(begun), fields: { ...fields } };
  } catch {
    return null; // another program at this address has written it
  }
}

/** What the page asks for besides: a stream with its usage, and tokens if they are to be shown. */
export function streamed(body, view) {
  const more = { stream: true, stream_options: { include_usage: true } };
  if (view !== "text") more.return_token_origins = true;
  // with log probabilities no drafts are made, so they are not asked for where only origins are to be seen
  if (view === "tokens") Object.assign(more, { logprobs: true, top_logprobs: NUM_ALTERNATIVES });
  return { ...body, ...more };
}

/** Has the model answer the branch that ends at `parent`; the answer is a new branch. `begun`, `tokens`: its beginning. */
export async function answer(conversation, parent, { begun = "", tokens = null } = {}) {
  const node = add(conversation, parent, "assistant", { content: begun, calls: [], reasoning: "", stats: null, error: null });
  const view = tokens !== null ? "tokens" : tokenView.value;
  if (view !== "text") Object.assign(node, { tokens: tokens ?? [], scored: tokens?.length ?? 0 });
  const abort = new AbortController();
  growing.set(node.id, { conversation, abort });
  const times = { begun: performance.now(), first: 0, last: 0 };
  touch(conversation, node);
  try {
    const terms = termsFor(conversation, begun);
    node.terms = JSON.stringify(terms);
    const body = requestOn(terms, conversation, parent);
    const response = await send(CHAT, streamed(body, view), abort.signal);
    for await (const event of events(response)) {
      take(node, event, times);
      touch(conversation, node);
    }
    if (!node.finish) throw new Error("The answer ended before it was complete.");
    if (server.value?.isGateway && !server.value.info) loadServer(); // its model is in memory now
    announce("The answer is complete.");
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else node.error = error.message;
    if (node.error) announce(`Error: ${node.error}`);
    if (error.status === 404) loadServer(); // another model may be served by now
  } finally {
    node.stats = statsOf(node, times);
    touch(conversation, node);
    // it is complete once a reload would not lose its end
    await Promise.race([keep(), new Promise((resolve) => setTimeout(resolve, KEEP_MS))]);
    growing.delete(node.id);
    touch(conversation, node);
  }
  return node;
}

function take(node, event, times) {
  if (event.usage) node.usage = event.usage;
  const choice = event.choices?.[0];
  if (!choice) return;
  const delta = choice.delta ?? {};
  const now = performance.now();
  if (delta.content || delta.reasoning_content || delta.tool_calls) {
    times.first ||= now;
    times.last = now;
  }
  if (delta.content) node.content += delta.content;
  if (delta.reasoning_content) node.reasoning += delta.reasoning_content;
  for (const part of delta.tool_calls ?? []) {
    const call = (node.calls[part.index] ??= { id: "", name: "", arguments: "" });
    if (part.id) call.id = part.id;
    if (part.function?.name) call.name = part.function.name;
    if (part.function?.arguments) call.arguments += part.function.arguments;
  }
  if (node.tokens) takeTokens(node, choice);
  if (choice.finish_reason) node.finish = choice.finish_reason;
}

/** Tokens are kept as {t: text, b: bytes if they are no whole characters, o: origin, p: log probability, a: alternatives}. Origins come
 * first, log probabilities follow: `scored` of the tokens have theirs, or had none to come. */
function takeTokens(node, choice) {
  for (const entry of choice.token_origins ?? []) node.tokens.push(withBytes({ t: entry.token, o: entry.origin }, entry));
  for (const entry of choice.logprobs?.content ?? []) {
    const token = node.tokens[node.scored];
    token.p = entry.logprob;
    token.a = (entry.top_logprobs ?? []).map((other) => withBytes({ t: other.token, p: other.logprob }, other));
    node.scored += 1;
  }
}

function withBytes(token, entry) {
  if (entry.token.includes("\ufffd")) token.b = entry.bytes;
  return token;
}

function statsOf(node, times) {
  const count = node.usage?.completion_tokens ?? null;
  const elapsed = (times.last - times.first) / 1000;
  return {
    completion: count,
    prompt: node.usage?.prompt_tokens ?? null,
    cached: node.usage?.prompt_tokens_details?.cached_tokens ?? null,
    first: times.first ? (times.first - times.begun) / 1000 : null,
    rate: count > 1 && elapsed > 0.02 ? (count - 1) / elapsed : null,
    total: (performance.now() - times.begun) / 1000,
  };
}
