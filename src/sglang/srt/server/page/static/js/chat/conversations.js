// Conversations: trees of messages that stay in this browser (IndexedDB).
//
//   conversation {id, title, created, updated, system, root children, nodes: {id: node}, leaf}
//   node {id, parent, role, content, images, files, reasoning, calls, stats, tokens, ...}; `leaf` is the end of the branch on view
import { server } from "../api.js";
import { Store, newId } from "../lib.js";

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

async function run(mode, work) {
  const table = (await database()).transaction(TABLE, mode).objectStore(TABLE);
  const request = work(table);
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
  if (current.value.id === id) current.set(fresh());
}

export async function exportAll() {
  return run("readonly", (table) => table.getAll());
}

/** Takes conversations as `exportAll` gave them. Returns how many. Throws an Error for anything else. */
export async function importAll(text) {
  const given = JSON.parse(text);
  const all = Array.isArray(given) ? given : Array.isArray(given?.conversations) ? given.conversations : [given];
  const checked = all.map(checkConversation);
  for (const conversation of checked) await run("readwrite", (table) => table.put(conversation));
  await loadAll();
  return checked.length;
}

function checkConversation(given) {
  const whole = { ...fresh(), ...given };
  if (typeof given !== "object" || given === null || typeof whole.id !== "string" || typeof whole.nodes !== "object" || whole.nodes === null) {
    throw new Error("this is no conversation of this page");
  }
  for (const [id, node] of Object.entries(whole.nodes)) {
    const roles = ["user", "assistant", "tool"];
    if (node?.id !== id || !roles.includes(node.role) || typeof node.content !== "string" || (node.parent !== null && !Object.hasOwn(whole.nodes, node.parent))) {
      throw new Error(`message ${id} of the conversation is damaged`);
    }
    node.images = (Array.isArray(node.images) ? node.images : []).filter((url) => typeof url === "string" && url.startsWith("data:image/"));
    node.running = false;
  }
  if (whole.leaf !== null && !Object.hasOwn(whole.nodes, whole.leaf)) whole.leaf = null;
  whole.title = String(whole.title);
  whole.system = whole.system === null ? null : String(whole.system);
  return whole;
}

const PAUSE_MS = 600;
const REST = 20;
let timer = 0;
/** until what has changed is kept: longer if that takes long, as it does for an answer with all its tokens */
let pause = PAUSE_MS;
const waiting = new Map();

/** Says that a conversation has changed: views are drawn anew, and it is kept soon. */
export function touch(conversation, node = null) {
  if (node) node.version = (node.version ?? 0) + 1;
  if (conversation === current.value) current.tell();
  waiting.set(conversation.id, conversation);
  timer ||= setTimeout(keep, pause);
}

/** Writes what has changed. */
export async function keep() {
  clearTimeout(timer);
  timer = 0;
  const all = [...waiting.values()];
  waiting.clear();
  for (const conversation of all) {
    if (!Object.keys(conversation.nodes).length && !conversation.system) continue;
    conversation.updated = Date.now();
    try {
      await run("readwrite", (table) => putTimed(table, conversation));
    } catch (error) {
      storageError.set(`Conversations cannot be kept in this browser: ${error.message}`);
      return;
    }
    const entry = { id: conversation.id, title: conversation.title, updated: conversation.updated };
    list.set([entry, ...list.value.filter((other) => other.id !== conversation.id)]);
  }
}

function putTimed(table, conversation) {
  const began = performance.now();
  const request = table.put(conversation); // makes a copy of all of it
  pause = Math.max(PAUSE_MS, REST * (performance.now() - began));
  return request;
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
  for (let at = conversation.nodes[leaf]; at; at = conversation.nodes[at.parent]) path.unshift(at);
  return path;
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
  const stack = [id];
  while (stack.length) {
    const at = stack.pop();
    stack.push(...(table.get(at) ?? []).map((node) => node.id));
    delete conversation.nodes[at];
  }
  const siblings = childrenOf(conversation, parent);
  conversation.leaf = parent;
  if (siblings.length) show(conversation, siblings.at(-1).id);
  touch(conversation);
}
