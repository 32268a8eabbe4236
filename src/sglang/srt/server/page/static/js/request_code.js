// A request as code: curl, the openai client for Python, and our language.
import { html, useState, CopyButton, Dialog } from "./lib.js";
import { BASE, getKey, modelOf, partsOf, pathOf, server } from "./api.js";

const SERVER = BASE.href.replace(/\/$/, "");

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A JSON value as a Python expression. */
export function python(value, indent = 0) {
  const pad = "    ".repeat(indent);
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return pythonText(value);
  const items = Array.isArray(value) ? value.map((item) => python(item, indent + 1)) : Object.entries(value).map(([name, item]) => `${pythonText(name)}: ${python(item, indent + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const line = items.join(", ");
  if (line.length + indent * 4 < 80 && !line.includes("\n")) return open + line + close;
  return `${open}\n${items.map((item) => `${pad}    ${item},\n`).join("")}${pad}${close}`;
}

/** JSON without the control characters that JSON may have: they would act in a terminal. */
const escapedJson = (value, indent) => JSON.stringify(value, null, indent).replace(/[\u007f-\u009f\u2028\u2029]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

// JSON's escapes are Python's, but for those beyond 16 bits, which JSON writes as they are
const pythonText = (text) => escapedJson(text);

export function asCurl(path, body) {
  const key = getKey() ? ' \\\n  -H "Authorization: Bearer $SGLANG_API_KEY"' : "";
  return `curl ${quoted(SERVER + path)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(escapedJson(body, 2))}`;
}

const OPENAI = new Set(["model", "messages", "temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty", "seed", "stop", "tools", "response_format", "logprobs", "top_logprobs", "stream", "stream_options", "n"]);

export function asOpenai(body) {
  const own = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  if (Object.keys(extra).length) own.push(["extra_body", extra]);
  const args = own.map(([name, value]) => `    ${name}=${python(value, 1)},\n`).join("");
  return `${openaiHead()}reply = client.chat.completions.create(\n${args})\nprint(reply.choices[0].message.content)\n`;
}

const COMPLETIONS = new Set(["max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "n", "logit_bias"]);

const openaiHead = () => `${getKey() ? "import os\n\n" : ""}import openai\n\nclient = openai.OpenAI(base_url=${pythonText(`${SERVER}/v1`)}, api_key=${getKey() ? 'os.environ["SGLANG_API_KEY"]' : '"none"'})\n`;

/** The options of a request to /generate, by OpenAI's names: [[name, value]]. */
const namedOf = ({ sampling_params: params }) => Object.entries(params).map(([name, value]) => [name === "max_new_tokens" ? "max_tokens" : name, value]);

/** The same as a completion. */
function generateAsOpenai(body) {
  const named = namedOf(body);
  const own = [["model", modelOf(server.value) ?? "default"], ["prompt", body.text], ...named.filter(([name]) => COMPLETIONS.has(name))];
  const extra = Object.fromEntries(named.filter(([name]) => !COMPLETIONS.has(name)));
  if (Object.keys(extra).length) own.push(["extra_body", extra]);
  return `${openaiHead()}reply = client.completions.create(\n${own.map(([name, value]) => `    ${name}=${python(value, 1)},\n`).join("")})\nprint(reply.choices[0].text)\n`;
}

function generateAsLanguage(body) {
  const named = namedOf(body);
  const left = named.filter(([name]) => !(name in GEN)).map(([name]) => name);
  const note = left.length ? `# ${left.join(", ")}: only in the other two forms\n` : "";
  const args = named.filter(([name]) => name in GEN).map(([name, value]) => `, ${GEN[name]}=${python(value, 1)}`).join("");
  return `${languageHead(note)}\n\n@sgl.function\ndef request(s):\n    s += ${pythonText(body.text)}\n    s += sgl.gen("answer"${args})\n\n\nprint(request.run()["answer"])\n`;
}

const GEN = { temperature: "temperature", top_p: "top_p", top_k: "top_k", min_p: "min_p", max_tokens: "max_tokens", frequency_penalty: "frequency_penalty", presence_penalty: "presence_penalty", repetition_penalty: "repetition_penalty", stop: "stop", regex: "regex", ebnf: "ebnf", json_schema: "json_schema" };

function turn(message) {
  const role = { system: "system", user: "user", assistant: "assistant" }[message.role] ?? "user";
  if (typeof message.content === "string") return `    s += sgl.${role}(${pythonText(message.content)})\n`;
  const parts = (message.content ?? []).map((part) => (part.type === "image_url" ? `sgl.image(${pythonText(part.image_url.url)})` : pythonText(part.text)));
  return `    s += sgl.${role}(${parts.join(" + ") || '""'})\n`;
}

/** The first lines of a program of our language for this server. */
export function languageHead(note = "") {
  const key = getKey() ? ', api_key=os.environ["SGLANG_API_KEY"]' : "";
  return `${key ? "import os\n\n" : ""}import sglang as sgl\n\n${note}sgl.set_default_backend(sgl.RuntimeEndpoint(${pythonText(SERVER + pathOf(""))}${key}))\n`;
}

export function asLanguage(body) {
  const { adapter } = partsOf();
  const args = Object.entries(GEN).filter(([name]) => body[name] !== undefined && body[name] !== null).map(([name, ours]) => `, ${ours}=${python(body[name], 1)}`).join("");
  const given = body.response_format?.json_schema?.schema;
  const schema = given ? `, json_schema=${pythonText(JSON.stringify(given))}` : "";
  const { messages } = body;
  const begun = body.continue_final_message ? messages.at(-1).content : "";
  const turns = (body.continue_final_message ? messages.slice(0, -1) : messages).map(turn).join("");
  const left = [body.tools && "tools", body.seed !== undefined && "seed", body.chat_template_kwargs && "chat_template_kwargs"].filter(Boolean);
  const note = left.length ? `# ${left.join(", ")}: only in the other two forms\n` : "";
  const answer = `sgl.assistant(${begun ? `${pythonText(begun)} + ` : ""}sgl.gen("answer"${args}${schema}))`;
  return `${languageHead(note)}\n\n@sgl.function\ndef conversation(s):\n${turns}    s += ${answer}\n\n\nprint(conversation.run(${adapter ? `lora=${pythonText(adapter)}` : ""})["answer"])\n`;
}

const FORMS = [
  ["curl", asCurl],
  ["openai", (path, body) => (body.messages ? asOpenai(body) : generateAsOpenai(body))],
  ["sglang", (path, body) => (body.messages ? asLanguage(body) : generateAsLanguage(body))],
];

export function RequestCode({ path, body }) {
  const [form, setForm] = useState("curl");
  const text = FORMS.find(([name]) => name === form)[1](path, body);
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: FORMS.length - 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (FORMS.findIndex(([name]) => name === form) + step) % FORMS.length;
    setForm(FORMS[next][0]);
    event.currentTarget.children[next].focus();
  };
  return html`<div class="request-code">
    <div class="row"><div class="segments" role="tablist" aria-label="Form" onKeyDown=${move}>${FORMS.map(([name]) => html`<button type="button" role="tab" aria-selected=${String(name === form)} onClick=${() => setForm(name)}>${name}</button>`)}</div><span class="space"></span><${CopyButton} text=${text} label="Copy the code" /></div>
    <pre tabindex="0" role="tabpanel" aria-label="Code"><code>${text}</code></pre>
  </div>`;
}

/** `bodyOf` makes the request. It throws an Error if the options are wrong. */
export function CodeDialog({ path, bodyOf, onClose }) {
  let shown;
  try {
    shown = html`<${RequestCode} path=${path} body=${bodyOf()} />`;
  } catch (error) {
    shown = html`<p class="error" role="alert">${error.message}</p>`;
  }
  return html`<${Dialog} title="The request as code" onClose=${onClose} wide>${shown}<//>`;
}
