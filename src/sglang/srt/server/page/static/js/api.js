// Requests to the server: with the key, if it wants one, and with errors in its own words.
import { KeptStore, Store, inTab } from "./lib.js";

const KEY = "sglang.key";
export const CHAT = "/v1/chat/completions";
/** Where the server is, whatever stands before its paths (--root-path). */
export const BASE = new URL("../../", import.meta.url);

/** {models, info, isGateway, error, status}: what is served; null before it is known. `info`: of the chosen model; null where it is not
 * in memory. */
export const server = new Store(null);
/** The name of the chosen model, as `/v1/models` has it, or BASE:ADAPTER. */
export const chosen = new KeptStore("sglang.model", (kept) => (typeof kept === "string" ? kept : null));
/** Which key the server asks for: null, "any" or "admin". */
export const keyNeeded = new Store(null);

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Empty where there is none that could be sent. */
export const getKey = () => /^[\x21-\x7e]{1,4096}$/.exec(inTab.get(KEY) ?? "")?.[0] ?? "";

export async function setKey(key) {
  inTab.put(KEY, key || null);
  await loadServer();
  keyNeeded.set(server.value.status === 401 ? "any" : null);
}

export async function send(path, body, signal) {
  const headers = {};
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  const options = { headers, signal, credentials: "omit" };
  if (body !== undefined) {
    options.method = "POST";
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(new URL(path.slice(1), BASE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", 0);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

const messageOf = (error) => (typeof error?.message === "string" ? error.message : typeof error === "string" ? error : null);
const unreadable = () => new ApiError("What answers at this address cannot be read: it may be another program.", 0);

async function errorOf(response) {
  let message = `The server says ${response.status}.`;
  try {
    message = messageOf((await response.json()).error) ?? message;
  } catch {
    // an answer of a proxy
  }
  if (response.status === 401) keyNeeded.set(message.includes("admin key") ? "admin" : "any");
  return new ApiError(message, response.status);
}

export const getJson = async (path, signal) => (await send(path, undefined, signal)).json();
export const postJson = async (path, body, signal) => (await send(path, body, signal)).json();

/** An event of a stream. Throws an ApiError for one that says what went wrong, and for what is no event of ours. */
function eventOf(text) {
  let event = null;
  try {
    event = JSON.parse(text);
  } catch {
    // it has come through something else
  }
  if (typeof event !== "object" || event === null) throw unreadable();
  if (event.error) throw new ApiError(messageOf(event.error) ?? "The server failed.", 0);
  return event;
}

/** The data of server-sent events, parsed, up to [DONE]. A consumer that stops early ends the request. Throws an ApiError. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isOver = false;
  const read = () => reader.read().catch((error) => {
    throw error.name === "AbortError" ? error : new ApiError("The connection broke before the answer was complete.", 0);
  });
  try {
    for (;;) {
      const { value, done } = await read();
      isOver = done;
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield eventOf(line.slice(6));
    }
  } finally {
    if (!isOver) reader.cancel().catch(() => {});
  }
}

let latest = null;

/** Asks what is served, and about the chosen model. Of several at once the last one counts, in whatever order answers come. */
export function loadServer() {
  const mine = ask().then((found) => (mine === latest ? server.set(found) : latest));
  latest = mine;
  return mine;
}

const asUnreadable = (error) => {
  throw error instanceof SyntaxError ? unreadable() : error;
};

async function ask() {
  try {
    const found = (await getJson("/v1/models").catch(asUnreadable))?.data;
    if (!Array.isArray(found) || !found.every((card) => typeof card?.id === "string")) throw unreadable();
    const models = found.map((card) => ({ ...card, name: nameOf(card) }));
    const known = { models, isGateway: models.some((card) => "loaded" in card) };
    const card = cardOf(known);
    const info = card?.loaded === false || (known.isGateway && !isPath(rootOf(card))) ? null : await getJson(pathTo(known, card, "/get_model_info"));
    return { ...known, info, error: null, status: 200 };
  } catch (error) {
    return { models: [], isGateway: false, info: null, error: error.message, status: error.status };
  }
}

export async function choose(name) {
  chosen.set(name);
  await loadServer();
}

/** Adapters are named with the model that they are of. */
function nameOf({ id, parent }) {
  return typeof parent === "string" && !String(id).startsWith(`${parent}:`) ? `${parent}:${id}` : String(id);
}

/** The chosen model if it is served, else the first. */
const cardOf = (known) => known?.models.find((card) => card.name === chosen.value) ?? known?.models[0];

/** The name of the model that is asked. */
export const modelOf = (known) => cardOf(known)?.name;

/** Whose server it is: that of the chosen model, or of the model that the chosen adapter is of. */
const rootOf = (card) => (typeof card?.parent === "string" ? card.parent : card?.id);

/** Whether a name can stand in an address: browsers take . and .. for steps. */
const isPath = (name) => !String(name).split("/").some((part) => part === "" || part === "." || part === "..");

/** A path of the server of a model: of several models behind one address, each has a prefix. */
function pathTo(known, card, path) {
  if (!known?.isGateway || !card) return path;
  const root = String(rootOf(card));
  return `/models/${isPath(root) ? root.split("/").map(encodeURIComponent).join("/") : "-"}${path}`;
}

/** A path of the chosen model's server. */
export const pathOf = (path, known = server.value) => pathTo(known, cardOf(known), path);
/** A path of the server of the model with this name. */
export const pathOfModel = (name, path) => pathTo(server.value, { id: name }, path);

/** What programs of our language name: {base, adapter} of a model, by default the chosen one. */
export function partsOf(known = server.value, name = modelOf(known)) {
  const card = known?.models.find((one) => one.name === name) ?? known?.models.find((one) => String(name).startsWith(`${one.name}:`) && typeof one.parent !== "string");
  const base = card ? rootOf(card) : name;
  return { base, adapter: card && String(name).startsWith(`${base}:`) ? name.slice(String(base).length + 1) : null };
}
