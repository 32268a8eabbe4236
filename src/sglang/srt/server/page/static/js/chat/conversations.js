// Conversations: trees of messages that stay in this browser (IndexedDB).
//
//   conversation {id, title, created, updated, system, root children, nodes: {id: node}, leaf}
//   node {id, parent, role, content, images, files, reasoning, calls, stats, tokens, ...}; `leaf` is the end of the branch on view
import { server } from "../api.js";
import { Store, inTab, newId, parseJson } from "../lib.js";
import { conversationFrom, nodeFrom } from "./imports.js";

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

/** What the page begins with: all conversations that are kept, and that on view when this tab was left. */
export async function begin() {
  await keepLeft();
  await Promise.all([loadAll(), reopen()]);
}

async function loadAll() {
  try {
    const all = await run("readonly", (table) => table.getAll());
    all.sort((a, b) => b.updated - a.updated);
    list.set(all.map(({ id, title, updated }) => ({ id, title: String(title ?? ""), updated })));
  } catch (error) {
    storageError.set(`Conversations cannot be kept in this browser: ${error.message}`);
  }
}

/** The conversation that is kept by this id, if there is one. Throws an Error if other programs at this address have damaged it. */
async function read(id) {
  const found = await run("readonly", (table) => table.get(id));
  return found && conversationFrom(found, fresh());
}

export async function open(id) {
  try {
    const found = await read(id);
    if (found) current.set(found);
  } catch (error) {
    storageError.set(`The conversation cannot be read: ${error.message}`);
  }
}

const ON_VIEW = "sglang.conversation";
let noted = null;
current.follow(() => {
  const { id } = current.value;
  if (id !== noted) inTab.put(ON_VIEW, id);
  noted = id;
});

/** Opens what this tab had on view before it was loaded anew. */
async function reopen() {
  const id = inTab.get(ON_VIEW);
  const found = id && (await read(id).catch(() => null));
  if (found && isEmpty(current.value)) current.set(found);
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
  const given = parseJson(text);
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

const LEFT = "sglang.left";

/** Writes what is not yet written while the page is left: there is no time to read. A transaction may end with the page, so that
 * the tab keeps the text as well, if it has room for it. */
export function keepAtOnce() {
  const all = [...new Map([...writing, ...waiting]).values()].filter((conversation) => !isEmpty(conversation));
  if (all.length) inTab.put(LEFT, JSON.stringify(all));
  run("readwrite", (table) => {
    for (const conversation of all) table.put(conversation);
    table.transaction.commit();
    return Promise.resolve();
  }).catch(() => {}); // there is nobody to tell
}

/** Writes what this tab held when it was left. */
async function keepLeft() {
  const text = inTab.get(LEFT);
  if (text === null) return;
  inTab.put(LEFT, null);
  try {
    for (const one of parseJson(text)) {
      const conversation = conversationFrom(one, fresh());
      await run("readwrite", (table) => putMerged(table, conversation));
    }
  } catch {
    // other programs at this address have damaged it, or nothing is kept in this browser, which loadAll says
  }
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
    const ours = Object.hasOwn(conversation.nodes, id) ? conversation.nodes[id] : null;
    const isNews = ours ? (node?.version ?? 0) > (ours.version ?? 0) : !gone?.has(id);
    try {
      if (isNews) conversation.nodes[id] = nodeFrom(id, node, conversation.nodes);
    } catch {
      // its parent was deleted here, or it was not written by this page
    }
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
