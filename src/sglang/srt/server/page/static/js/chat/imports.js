// Conversations from files. A file may say anything: of it is taken what this page would have written, and nothing else.

const ROLES = ["user", "assistant", "tool"];
const ORIGINS = ["sampled", "draft", "forced"];
/** not "null", which the parent of first messages is as the name of a member */
const ID = /^(?!null$)[a-z0-9]{1,40}$/;
const MAX_MESSAGES = 20000;
/** of one message */
const MAX_CALLS = 200;
const MAX_FILES = 1000;
const MAX_TOKENS = 200_000;
/** of one token */
const MAX_BYTES = 1000;
const MAX_OTHERS = 50;
const LONGEST_NAME = 1000;
const LONGEST_ERROR = 10_000;

const text = (value) => (typeof value === "string" ? value : "");
const words = (value) => (typeof value === "string" ? value : null);
const number = (value) => (Number.isFinite(value) ? value : null);
const list = (value) => (Array.isArray(value) ? value : []);
const member = (value) => (typeof value === "object" && value !== null ? value : {});
const isImage = (url) => typeof url === "string" && url.startsWith("data:image/");
const bytes = (value) => (Array.isArray(value) && value.length <= MAX_BYTES && value.every((one) => Number.isInteger(one) && one >= 0 && one < 256) ? { b: value } : {});

const version = (value) => (Number.isSafeInteger(value) && value > 0 ? value : 0);

/** Of a conversation. */
export const systemFrom = (given) => ({ system: words(given?.system), systemVersion: version(given?.systemVersion) });
/** Names of messages. */
export const idsFrom = (value) => list(value).filter((id) => typeof id === "string" && ID.test(id)).slice(-MAX_MESSAGES);

/** A conversation, like `fresh`. Throws an Error that says what is wrong. */
export function conversationFrom(given, fresh) {
  if (typeof given !== "object" || given === null || typeof given.id !== "string" || typeof given.nodes !== "object" || given.nodes === null) {
    throw new Error("this is no conversation of this page");
  }
  const entries = Object.entries(given.nodes);
  if (entries.length > MAX_MESSAGES) throw new Error(`a conversation has ${entries.length} messages, more than ${MAX_MESSAGES}`);
  const nodes = Object.fromEntries(entries.map(([id, node]) => [id, nodeFrom(id, node, given.nodes)]));
  checkTree(nodes);
  return {
    ...fresh,
    id: ID.test(given.id) ? given.id : fresh.id,
    title: text(given.title).slice(0, 200),
    created: number(given.created) ?? fresh.created,
    updated: number(given.updated) ?? fresh.updated,
    ...systemFrom(given),
    nodes,
    leaf: Object.hasOwn(nodes, text(given.leaf)) ? given.leaf : null,
    gone: idsFrom(given.gone).filter((id) => !Object.hasOwn(nodes, id)),
  };
}

/** One message of it, whose parent is among `all`. Throws an Error, too. */
export function nodeFrom(id, given, all) {
  const hasPlace = given?.parent === null || (typeof given?.parent === "string" && Object.hasOwn(all, given.parent));
  if (!ID.test(id) || given?.id !== id || !ROLES.includes(given.role) || typeof given.content !== "string" || !hasPlace) {
    throw new Error(`message ${id.slice(0, 40)} of the conversation is damaged`);
  }
  const node = { id, parent: given.parent, role: given.role, content: given.content, created: number(given.created) ?? 0 };
  node.version = version(given.version);
  node.images = list(given.images).slice(0, MAX_FILES).filter(isImage);
  node.files = list(given.files).slice(0, MAX_FILES).map((file) => ({ name: text(file?.name).slice(0, LONGEST_NAME), text: text(file?.text) }));
  if (given.role === "tool") return { ...node, callId: text(given.callId) };
  if (given.role === "user") return node;
  node.reasoning = text(given.reasoning);
  node.calls = list(given.calls).slice(0, MAX_CALLS).map((call) => ({ id: text(call?.id), name: text(call?.name).slice(0, LONGEST_NAME), arguments: text(call?.arguments) }));
  if (words(given.terms)) node.terms = given.terms;
  node.finish = words(given.finish) ?? undefined;
  node.error = words(given.error)?.slice(0, LONGEST_ERROR) ?? null;
  node.edited = given.edited === true;
  node.stats = given.stats ? statsFrom(given.stats) : null;
  if (Array.isArray(given.tokens)) node.tokens = given.tokens.slice(0, MAX_TOKENS).map(tokenFrom);
  if (Number.isInteger(given.scored)) node.scored = given.scored;
  return node;
}

const STATS = ["completion", "prompt", "cached", "first", "rate", "total"];
const statsFrom = (given) => Object.fromEntries(STATS.map((name) => [name, number(given[name])]));

function tokenFrom(given) {
  const token = { t: text(given?.t).slice(0, MAX_BYTES), ...bytes(given?.b) };
  if (ORIGINS.includes(given?.o)) token.o = given.o;
  if (given?.chosen === true) token.chosen = true;
  if (Number.isFinite(given?.p)) token.p = given.p;
  if (Array.isArray(given?.a)) token.a = given.a.slice(0, MAX_OTHERS).map((other) => ({ t: text(other?.t).slice(0, MAX_BYTES), p: number(member(other).p), ...bytes(other?.b) }));
  return token;
}

/** Every message must lead to the beginning: a loop would have no end. */
function checkTree(nodes) {
  const safe = new Set([null]);
  for (const id of Object.keys(nodes)) {
    const path = new Set();
    let at = id;
    while (!safe.has(at)) {
      path.add(at);
      safe.add(at);
      at = nodes[at].parent;
      if (path.has(at)) throw new Error(`message ${id} of the conversation leads to no beginning`);
    }
  }
}
