// Conversations: trees of messages that stay in this browser (IndexedDB).
//
//   conversation {id, title, created, updated, system, systemVersion, nodes: {id: node}, leaf, gone}
//   node {id, parent, role, content, images, files, reasoning, calls, stats, tokens, ...}; `leaf` is the end of the branch on view,
//   `gone` the ids of messages that were deleted: other tabs, which may still have them, are not to bring them back
import { server } from "../api.js";
import { Store, inTab, newId, parseJson } from "../lib.js";
import { conversationFrom, idsFrom, nodeFrom, systemFrom } from "./imports.js";

const NAME = "sglang";
const TABLE = "conversations";

let opening = null;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
    request.onsuccess = () => {
      request.result.onclose = () => (opening = null); // the user has cleared what is kept for this address
      resolve(request.result);
    };
    request.onerror = () => {
      opening = null;
      reject(request.error);
    };
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
  return { id: newId(), title: "", created: now, updated: now, system: null, systemVersion: 0, nodes: {}, leaf: null, gone: [] };
}

/** What the conversation begins with: the user's words, or what the server suggests for its model. */
export const systemOf = (conversation) => conversation.system ?? server.value?.info?.suggested_system_prompt ?? "";

export function setSystem(conversation, text) {
  Object.assign(conversation, { system: text, systemVersion: conversation.systemVersion + 1 });
  touch(conversation);
}

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

/** node id -> {conversation, abort} of the answers that grow. */
export const growing = new Map();

/** The conversation with this id that this tab works on, if there is one: what is kept of it is older. */
function inWork(id) {
  const answer = [...growing.values()].find(({ conversation }) => conversation.id === id);
  return answer?.conversation ?? waiting.get(id) ?? writing.get(id) ?? null;
}

let numOpened = 0;

/** Shows another conversation. Of several choices the last one counts. */
export async function open(id) {
  numOpened += 1;
  const number = numOpened;
  try {
    const found = inWork(id) ?? (await read(id));
    if (found && number === numOpened) current.set(found);
  } catch (error) {
    storageError.set(`The conversation cannot be read: ${error.message}`);
  }
}

/** Shows an empty one. */
export function start() {
  numOpened += 1;
  keep();
  current.set(fresh());
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

/** ids of conversations that were deleted, here or in another tab, since this page was loaded */
const removed = new Set();

export async function remove(id) {
  forget(id);
  try {
    await run("readwrite", (table) => table.delete(id));
    others?.postMessage({ removed: id });
  } catch (error) {
    storageError.set(`The conversation cannot be deleted: ${error.message}`);
  }
}

/** From now on nothing of it is written, nor shown. */
function forget(id) {
  removed.add(id);
  for (const { conversation, abort } of growing.values()) if (conversation.id === id) abort.abort();
  waiting.delete(id);
  list.set(list.value.filter((entry) => entry.id !== id));
  if (current.value.id === id) current.set(fresh());
}

export async function exportAll() {
  return run("readonly", (table) => table.getAll());
}

/** Takes conversations as `exportAll` gave them; to one that is there messages are added. Returns how many. Throws an Error for anything
 * else. */
export async function importAll(text) {
  const given = parseJson(text);
  const all = Array.isArray(given) ? given : Array.isArray(given?.conversations) ? given.conversations : [given];
  const checked = all.map((one) => conversationFrom(one, fresh()));
  const ids = checked.map(({ id }) => id);
  for (const id of ids) removed.delete(id);
  others?.postMessage({ wanted: ids });
  await keep();
  for (const conversation of checked) await run("readwrite", (table) => putMerged(table, conversation, { isWanted: true }));
  await loadAll();
  if (ids.includes(current.value.id)) await open(current.value.id);
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
  if (removed.has(conversation.id)) return;
  waiting.set(conversation.id, conversation);
  timer ||= setTimeout(keep, pause);
}

/** Writes what has changed. What cannot be written is tried again with the next change. */
export async function keep() {
  clearTimeout(timer);
  timer = 0;
  for (const [id, conversation] of [...waiting]) {
    waiting.delete(id);
    if (isNothing(conversation)) continue;
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
    if (removed.has(id)) continue;
    const entry = { id: conversation.id, title: conversation.title, updated: conversation.updated };
    listed(entry);
    others?.postMessage({ kept: entry });
  }
}

const LEFT = "sglang.left";

/** Writes what is not yet written while the page is left: there is no time to read. A transaction may end with the page, so that
 * the tab keeps the text as well, if it has room for it. */
export function keepAtOnce() {
  const all = [...new Map([...writing, ...waiting]).values()].filter((conversation) => !isNothing(conversation));
  if (all.length) inTab.put(LEFT, JSON.stringify(all.map((conversation) => ({ conversation, wasKept: isListed(conversation.id) }))));
  run("readwrite", (table) => {
    for (const conversation of all) table.put(conversation);
    table.transaction.commit();
    return Promise.resolve();
  }).catch(() => {}); // there is nobody to tell
}

/** The page was left and is there again as it was: it needs nothing of what the tab held for the next one. */
export const comeBack = () => inTab.put(LEFT, null);

/** Writes what this tab held when it was left. */
async function keepLeft() {
  const text = inTab.get(LEFT);
  if (text === null) return;
  try {
    for (const { conversation: left, wasKept } of parseJson(text)) {
      const conversation = conversationFrom(left, fresh());
      // what was kept then and is not there now was deleted in another tab
      await run("readwrite", (table) => putMerged(table, conversation, { isOld: wasKept === true }));
    }
  } catch {
    // other programs at this address have damaged it, or nothing is kept in this browser, which loadAll says
  } finally {
    inTab.put(LEFT, null);
  }
}

const isListed = (id) => list.value.some((entry) => entry.id === id);
/** Whether there is nothing to keep: what was kept before is to be kept as empty as it is now. */
const isNothing = (conversation) => removed.has(conversation.id) || (isEmpty(conversation) && !isListed(conversation.id));
const isEmpty = (conversation) => !Object.keys(conversation.nodes).length && !conversation.system;

function listed(entry) {
  list.set([entry, ...list.value.filter((other) => other.id !== entry.id)]);
}

/** Another tab may have changed the same conversation meanwhile: its messages are taken over, and its system prompt if it is newer. `isOld`: it is written only if it is there.
 * `isWanted`: its messages come back if they were deleted. */
function putMerged(table, conversation, { isOld = false, isWanted = false } = {}) {
  return new Promise((resolve, reject) => {
    const { transaction } = table;
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error("it was aborted"));
    const reading = table.get(conversation.id);
    reading.onsuccess = () => {
      if (removed.has(conversation.id) || (isOld && !reading.result)) return;
      merge(conversation, reading.result, isWanted);
      try {
        putTimed(table, conversation);
      } catch (error) {
        reject(error);
        transaction.abort();
      }
    };
  });
}

function merge(conversation, kept, isWanted = false) {
  const theirs = systemFrom(kept);
  if (theirs.systemVersion > conversation.systemVersion) Object.assign(conversation, theirs);
  const gone = new Set([...conversation.gone, ...idsFrom(kept?.gone)]);
  if (isWanted) for (const id of Object.keys(conversation.nodes)) gone.delete(id);
  conversation.gone = [...gone];
  for (const [id, node] of Object.entries(kept?.nodes ?? {})) {
    const ours = Object.hasOwn(conversation.nodes, id) ? conversation.nodes[id] : null;
    const isNews = ours ? (node?.version ?? 0) > (ours.version ?? 0) : !gone.has(id);
    try {
      if (isNews) conversation.nodes[id] = nodeFrom(id, node, conversation.nodes);
    } catch {
      // its parent was deleted here, or it was not written by this page
    }
  }
  takeAway(conversation, conversation.gone);
}

/** The other tabs with this page. */
const others = "BroadcastChannel" in globalThis ? new BroadcastChannel(NAME) : null;
if (others) {
  others.onmessage = async ({ data }) => {
    const { removed: id, wanted, imported, kept } = data ?? {};
    if (typeof id === "string") forget(id);
    for (const one of idsFrom(wanted)) removed.delete(one);
    if (imported) await loadAll();
    if (typeof kept?.id !== "string") return;
    if (removed.has(kept.id)) {
      await remove(kept.id); // it was written there before it was known that it is deleted
      return;
    }
    listed({ id: kept.id, title: String(kept.title ?? ""), updated: kept.updated });
    if (kept.id !== current.value.id) return;
    merge(current.value, await run("readonly", (table) => table.get(kept.id)));
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
  if (!conversation.title && role === "user") conversation.title = titleOf(node);
  touch(conversation);
  return node;
}

const titleOf = (node) => (node ? node.content.replace(/\s+/g, " ").trim().slice(0, 60) || "Image" : "");

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

/** Calls of tools that wait for a result at the end of the branch on view: {node, calls}. */
export function openCalls(conversation) {
  const path = pathTo(conversation);
  const node = path.findLast(({ role }) => role !== "tool");
  const answered = new Set(path.slice(path.indexOf(node) + 1).map(({ callId }) => callId));
  return { node, calls: (node?.calls ?? []).filter(({ id }) => !answered.has(id)) };
}

/** Messages that follow one, in all branches. */
export function numBelow(conversation, id) {
  const table = childTable(conversation);
  const found = [...(table.get(id) ?? [])];
  for (let i = 0; i < found.length; i += 1) found.push(...(table.get(found[i].id) ?? []));
  return found.length;
}

/** Shows the branch that `id` is in, up to its newest end. */
export function show(conversation, id) {
  conversation.leaf = endOf(childTable(conversation), id);
  touch(conversation);
}

function endOf(table, id) {
  let at = id;
  while (table.has(at)) at = table.get(at).at(-1).id;
  return at;
}

/** Removes a message and all that follow it. */
export function cut(conversation, id) {
  takeAway(conversation, [id]);
  touch(conversation);
}

/** Takes messages away, and all that follow them. */
function takeAway(conversation, ids) {
  const stack = ids.filter((id) => Object.hasOwn(conversation.nodes, id));
  if (!stack.length) return;
  const path = pathTo(conversation);
  const table = childTable(conversation);
  const gone = new Set(conversation.gone);
  while (stack.length) {
    const at = stack.pop();
    for (const node of table.get(at) ?? []) stack.push(node.id);
    growing.get(at)?.abort.abort();
    delete conversation.nodes[at];
    gone.add(at);
  }
  conversation.gone = [...gone];
  const left = childTable(conversation);
  if (path.some(({ id }) => gone.has(id))) conversation.leaf = endOf(left, path.findLast(({ id }) => !gone.has(id))?.id ?? null);
  if (path.length && gone.has(path[0].id)) conversation.title = titleOf(left.get(null)?.[0]); // it had the words of what is gone
}
