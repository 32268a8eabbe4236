// Requests to the server: with the key, if it wants one, and with errors in its own words.
import { Store } from "./lib.js";

const KEY = "sglang.key";
/** Where the server is, whatever stands before its paths (--root-path). */
export const BASE = new URL("../../", import.meta.url);

/** {model, info, error}: what is served; null before it is known. */
export const server = new Store(null);
/** Whether the server asks for a key. */
export const keyNeeded = new Store(false);

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const getKey = () => sessionStorage.getItem(KEY) ?? "";

export async function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  await loadServer();
  keyNeeded.set(server.value.status === 401);
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

async function errorOf(response) {
  let message = `The server says ${response.status}.`;
  try {
    message = String((await response.json()).error.message);
  } catch {
    // an answer of a proxy
  }
  if (response.status === 401) keyNeeded.set(true);
  return new ApiError(message, response.status);
}

export const getJson = async (path, signal) => (await send(path, undefined, signal)).json();
export const postJson = async (path, body, signal) => (await send(path, body, signal)).json();

/** The data of server-sent events, parsed, up to [DONE]. A consumer that stops early ends the request. */
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
      for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  } finally {
    if (!isOver) reader.cancel().catch(() => {});
  }
}

/** Asks what is served. */
export async function loadServer() {
  try {
    const [models, info] = await Promise.all([getJson("/v1/models"), getJson("/get_model_info")]);
    server.set({ models: models.data, info, error: null, status: 200 });
  } catch (error) {
    server.set({ models: [], info: null, error: error.message, status: error.status });
  }
}
