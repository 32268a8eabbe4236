// Conversations: trees of messages that stay in this browser (IndexedDB).
//
//   conversation {id, title, created, updated, system, root children, nodes: {id: node}, leaf}
//   node {id, parent, role, content, images, files, reasoning, calls, stats, tokens, ...}; `leaf` is the end of the branch on view
import { server } from "../api.js";
import { Store, newId } from "../lib.js";
import { conversationFrom } from "./imports.js";

const NAME = "sglang";
const TABLE = "conversations";

let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/** What `work` asks of the table: the result of its request, or of its promise. */
async function run(mode, work) {
  const table = (await database()).transaction(TABLE, mode).objectStore(TABLE);
  const request = work(table);
  if (request instanceof Promise) return request;
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** [{id, title, updated}], newest first. */
export const list = new Store([]);
/** The conversation on view. Its nodes are changed in place; `touch` tells. */
export const current = new Store(fresh());
/** Why conversations are not kept, if they are not. */
export const storageError = new Store(null);

export function fresh() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system: null, nodes: {}, leaf: null };
}

/** What the conversation begins with: the user's words, or what the server suggests for its model. */
export const systemOf = (conversation) => conversation.system ?? server.value?.info?.suggested_system_prompt ?? "";

export async function loadAll() {
  try {
    const all = await run("readonly", (table) => table.getAll());
    all.sort((a, b) => b.updated - a.updated);
    list.set(all.map(({ id, title, updated }) => ({ id, title, updated })));
  } catch (error) {
    storageError.set(`Conversations cannot be kept in this browser: ${error.message}`);
  }
}

export async function open(id) {
  const found = await run("readonly", (table) => table.get(id));
  if (found) current.set(found);
  return found;
}

export async function remove(id) {
  await run("readwrite", (table) => table.delete(id));
  list.set(list.value.filter((entry) => entry.id !== id));
  waiting.delete(id);
  others?.postMessage({ removed: id });
  if (current.value.id === id) current.set(fresh());
}

export async function exportAll() {
  return run("readonly", (table) => table.getAll());
}

/** Takes conversations as `exportAll` gave them. Returns how many. Throws an Error for anything else. */
export async function importAll(text) {
  const given = JSON.parse(text);
  const all = Array.isArray(given) ? given : Array.isArray(given?.conversations) ? given.conversations : [given];
  const checked = all.map((one) => conversationFrom(one, fresh()));
  for (const conversation of checked) await run("readwrite", (table) => table.put(conversation));
  await loadAll();
  others?.postMessage({ imported: true });
  return checked.length;
}

const PAUSE_MS = 600;
const REST = 20;
let timer = 0;
/** until what has changed is kept: longer if that takes long, as it does for an answer with all its tokens */
let pause = PAUSE_MS;
const waiting = new Map();
const writing = new Map();

/** Says that a conversation has changed: views are drawn anew, and it is kept soon. */
export function touch(conversation, node = null) {
  if (node) node.version = (node.version ?? 0) + 1;
  if (conversation === current.value) current.tell();
  waiting.set(conversation.id, conversation);
  timer ||= setTimeout(keep, pause);
}

/** Writes what has changed. What cannot be written is tried again with the next change. */
export async function keep() {
  clearTimeout(timer);
  timer = 0;
  for (const [id, conversation] of [...waiting]) {
    waiting.delete(id);
    if (isEmpty(conversation)) continue;
    conversation.updated = Date.now();
    writing.set(id, conversation);
    try {
      await run("readwrite", (table) => putMerged(table, conversation));
      storageError.set(null);
    } catch (error) {
      waiting.set(id, conversation);
      storageError.set(`Conversations cannot be kept in this browser: ${error.message || error.name}`);
      return;
    } finally {
      writing.delete(id);
    }
    const entry = { id: conversation.id, title: conversation.title, updated: conversation.updated };
    listed(entry);
    others?.postMessage({ kept: entry });
  }
}

/** Writes what is not yet written while the page is left: there is no time to read. */
export function keepAtOnce() {
  const all = [...new Map([...writing, ...waiting]).values()].filter((conversation) => !isEmpty(conversation));
  run("readwrite", (table) => {
    for (const conversation of all) table.put(conversation);
    table.transaction.commit();
    return Promise.resolve();
  }).catch(() => {}); // there is nobody to tell
}

const isEmpty = (conversation) => !Object.keys(conversation.nodes).length && !conversation.system;

function listed(entry) {
  list.set([entry, ...list.value.filter((other) => other.id !== entry.id)]);
}

/** Another tab may have changed the same conversation meanwhile: its messages are taken over. */
function putMerged(table, conversation) {
  return new Promise((resolve, reject) => {
    const { transaction } = table;
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error("it was aborted"));
    const reading = table.get(conversation.id);
    reading.onsuccess = () => {
      merge(conversation, reading.result);
      putTimed(table, conversation);
    };
  });
}

/** id of a conversation -> ids of messages that were deleted in this tab */
const deleted = new Map();

function merge(conversation, kept) {
  const gone = deleted.get(conversation.id);
  for (const [id, node] of Object.entries(kept?.nodes ?? {})) {
    const ours = conversation.nodes[id];
    const hasPlace = node.parent === null || node.parent in conversation.nodes;
    const isNews = ours ? (node.version ?? 0) > (ours.version ?? 0) : hasPlace && !gone?.has(id);
    if (isNews) conversation.nodes[id] = node;
  }
}

/** The other tabs with this page. */
const others = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;
if (others) {
  others.onmessage = async ({ data }) => {
    if (data.removed) list.set(list.value.filter((entry) => entry.id !== data.removed));
    if (data.imported) await loadAll();
    if (!data.kept) return;
    listed(data.kept);
    if (data.kept.id !== current.value.id) return;
    merge(current.value, await run("readonly", (table) => table.get(data.kept.id)));
    current.tell();
  };
}

function putTimed(table, conversation) {
  const began = performance.now();
  table.put(conversation); // makes a copy of all of it
  pause = Math.max(PAUSE_MS, REST * (performance.now() - began));
}

// --- the tree ------------------------------------------------------------------------------------------------------------------

export function add(conversation, parent, role, more = {}) {
  const node = { id: newId(), parent, role, content: "", images: [], created: Date.now(), version: 0, ...more };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  if (!conversation.title && role === "user") conversation.title = node.content.replace(/\s+/g, " ").trim().slice(0, 60) || "Image";
  touch(conversation);
  return node;
}

/** Messages from the first to `leaf`. */
export function pathTo(conversation, leaf = conversation.leaf) {
  const path = [];
  for (let at = conversation.nodes[leaf]; at; at = conversation.nodes[at.parent]) path.push(at);
  return path.reverse();
}

export function childrenOf(conversation, parent) {
  return Object.values(conversation.nodes)
    .filter((node) => node.parent === parent)
    .sort((a, b) => a.created - b.created);
}

/** parent -> children in the order they came, for all messages at once. */
export function childTable(conversation) {
  const table = new Map();
  for (const node of Object.values(conversation.nodes)) {
    if (!table.has(node.parent)) table.set(node.parent, []);
    table.get(node.parent).push(node);
  }
  for (const children of table.values()) children.sort((a, b) => a.created - b.created);
  return table;
}

/** Shows the branch that `id` is in, up to its newest end. */
export function show(conversation, id) {
  const table = childTable(conversation);
  let at = id;
  while (table.has(at)) at = table.get(at).at(-1).id;
  conversation.leaf = at;
  touch(conversation);
}

/** Removes a message and all that follow it. */
export function cut(conversation, id) {
  const table = childTable(conversation);
  const parent = conversation.nodes[id].parent;
  if (!deleted.has(conversation.id)) deleted.set(conversation.id, new Set());
  const gone = deleted.get(conversation.id);
  const stack = [id];
  while (stack.length) {
    const at = stack.pop();
    for (const node of table.get(at) ?? []) stack.push(node.id);
    delete conversation.nodes[at];
    gone.add(at);
  }
  const siblings = childrenOf(conversation, parent);
  conversation.leaf = parent;
  if (siblings.length) show(conversation, siblings.at(-1).id);
  touch(conversation);
}
