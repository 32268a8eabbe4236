// A request as code: curl, the openai client for Python, and our language.
//
// A request is {path, body, model, notes, omitted, scores}: `model` by its name, without an adapter; `notes` are sentences that stand above
// the code as comments; `omitted` are images that are not at hand: {name, size, sha256}, whose name stands where they belong. Bodies are
// those of the chat, of /generate and of /score_choices; `scores`: what one of /generate says as one of /score_choices.
import { BASE, getKey, partsOf, pathOfModel, server } from "./api.js";
import { FIELDS, defaultOf } from "./chat/options.js";
import { withoutControls } from "./lib.js";

const SERVER = BASE.href.replace(/\/$/, "");
/** bytes of one argument of a command, of which Linux takes 128 KiB */
const LONGEST_ARGUMENT = 100_000;

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

const comments = (notes) => notes.map((note) => `# ${withoutControls(note.replace(/\s+/g, " "))}\n`).join("");

/** What is said above the code of a request. */
function notesOf({ notes = [], omitted = [] }) {
  const missing = omitted.map(({ name, size, sha256 }) => `${name} stands for a file of ${size} bytes with the SHA-256 ${sha256}, too large to be kept: put in its data in base64, or its path.`);
  return [...notes, ...missing];
}

export function asCurl(request) {
  const { path, body } = request;
  const key = getKey() ? ' \\\n  -H "Authorization: Bearer $SGLANG_API_KEY"' : "";
  const text = escapedJson(body, 2);
  const isLong = text.length > LONGEST_ARGUMENT || new TextEncoder().encode(text).length > LONGEST_ARGUMENT;
  const data = isLong ? `--data-binary @- <<'JSON'\n${text}\nJSON` : `-d ${quoted(text)}`;
  return `${comments(notesOf(request))}curl ${quoted(SERVER + path)} \\\n  -H 'Content-Type: application/json'${key} \\\n  ${data}`;
}

// --- openai -------------------------------------------------------------------------------------------------------------------

const CHAT = new Set(["model", "messages", "temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty", "seed", "stop", "tools", "response_format", "logprobs", "top_logprobs", "stream", "stream_options", "n"]);
const COMPLETIONS = new Set(["model", "prompt", "max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "n", "logit_bias"]);

export function asOpenai(request) {
  const { path, body } = request;
  if (body.messages) return openaiHead(request) + openaiCall("chat.completions", CHAT, Object.entries(body)) + "print(reply.choices[0].message.content)\n";
  const completion = completionOf(request);
  if (completion) return openaiHead(request) + openaiCall("completions", COMPLETIONS, completion) + "print(reply.choices[0].text)\n";
  const head = openaiHead(request, "OpenAI's API has no such request: it goes to the native API as it is");
  return `${head}reply = client.post(${pythonText(SERVER + path)}, cast_to=object, body=${python(body)})\nprint(${body.choices ? 'reply["choices"]' : Array.isArray(body.text) ? "reply" : 'reply["text"]'})\n`;
}

function openaiHead(request, ...more) {
  return `${comments([...notesOf(request), ...more])}${getKey() ? "import os\n\n" : ""}import openai\n\nclient = openai.OpenAI(base_url=${pythonText(`${SERVER}/v1`)}, api_key=${getKey() ? 'os.environ["SGLANG_API_KEY"]' : '"none"'})\n`;
}

function openaiCall(name, known, fields) {
  const own = fields.filter(([field]) => known.has(field));
  const extra = Object.fromEntries(fields.filter(([field]) => !known.has(field)));
  if (Object.keys(extra).length) own.push(["extra_body", extra]);
  return `reply = client.${name}.create(\n${own.map(([field, value]) => `    ${field}=${python(value, 1)},\n`).join("")})\n`;
}

/** The fields of a completion that is the same as a request to /generate; null if there is none. */
function completionOf({ model, body }) {
  const { text, input_ids: ids, sampling_params: params, lora_path: adapter, ...more } = body;
  if (Object.keys(more).length || !params?.max_new_tokens || Array.isArray(text)) return null;
  const { max_new_tokens: most, ...others } = params;
  return Object.entries({ model: adapter ? `${model}:${adapter}` : model, prompt: text ?? ids, max_tokens: most, ...others });
}

// --- our language -------------------------------------------------------------------------------------------------------------

/** Parameters of `gen` by the names of the server's APIs. */
export const GEN = new Set(["max_tokens", "min_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos", "no_stop_trim", "seed", "logit_bias", "constrained_json_whitespace_pattern", "json_schema_strict", "regex", "ebnf", "json_schema", "structural_tag", "return_logprob", "logprob_start_len", "top_logprobs_num"]);
/** How the language has it in any case; where special tokens are left out, there are no spaces between them. */
const isAlways = (name, value) => name === "spaces_between_special_tokens" || (name === "skip_special_tokens" && value === true) || (name === "n" && value === 1);
const OTHERS = "only in the other two forms";

/** The first lines of a program of our language for this server. */
export function languageHead({ model = partsOf().base, ...request } = {}) {
  const key = getKey() ? ', api_key=os.environ["SGLANG_API_KEY"]' : "";
  return `${comments(notesOf(request))}${key ? "import os\n\n" : ""}import sglang as sgl\n\nsgl.set_default_backend(sgl.RuntimeEndpoint(${pythonText(SERVER + pathOfModel(model, ""))}${key}))\n`;
}

export function asLanguage(request) {
  const { body, scores } = request;
  try {
    return body.messages ? conversationProgram(request) : scores || body.choices ? selectProgram(request, scores ?? body) : generateProgram(request);
  } catch (error) {
    if (!(error instanceof Inexpressible)) throw error;
    return comments([`Our language does not say this as one request: ${error.message}. It is ${OTHERS}.`]);
  }
}

class Inexpressible extends Error {}

function program(name, head, lines, answer, adapter) {
  return `${head}\n\n@sgl.function\ndef ${name}(s):\n${lines.map((line) => `    s += ${line}\n`).join("")}\n\nprint(${name}.run(${adapter ? `lora=${pythonText(adapter)}` : ""})[${pythonText(answer)}])\n`;
}

/** Arguments of `gen`: ", temperature=0, ..." */
function genArgs(options) {
  const args = Object.entries(options).filter(([name, value]) => value !== undefined && name !== "model" && !isAlways(name, value));
  const left = args.filter(([name]) => !GEN.has(name)).map(([name]) => name);
  if (left.length) throw new Inexpressible(`it has ${left.join(", ")}`);
  return args.map(([name, value]) => `, ${name}=${python(value, 1)}`).join("");
}

/** An image as the language takes it: data URLs and addresses as they are, bare data as a data URL. */
function imageOf(source, omitted) {
  if (source.startsWith("video:")) throw new Inexpressible("it has frames of a video");
  const isText = /^(https?|data|file):/i.test(source) || omitted?.some(({ name }) => name === source) || source.length < 200;
  return `sgl.image(${pythonText(isText ? source : `data:;base64,${source}`)})`;
}

/** A prompt with its images in their places, in pieces that are added one after the other. */
function piecesOf({ text, image_data: images = [] }, omitted) {
  if (text === undefined) throw new Inexpressible("its prompt is token ids");
  if (Array.isArray(text)) throw new Inexpressible("it has several prompts");
  const mark = server.value?.info?.chat_roles?.image_token;
  const texts = images.length && mark ? text.split(mark) : [text];
  if (texts.length !== images.length + 1) throw new Inexpressible("its prompt has images in places of its own");
  return texts.flatMap((piece, i) => [piece && pythonText(piece), i < images.length && imageOf(images[i], omitted)]).filter(Boolean);
}

function generateProgram(request) {
  const { text, input_ids: _, image_data: images, sampling_params: params, lora_path: adapter, token_ids_logprob: ids, ...others } = request.body;
  const { max_new_tokens: most, ...sampling } = params;
  if (ids) throw new Inexpressible("it has token_ids_logprob");
  const gen = `sgl.gen("answer"${genArgs({ max_tokens: most, ...sampling, ...others })})`;
  return program("request", languageHead(request), [...piecesOf({ text, image_data: images }, request.omitted), gen], "answer", adapter);
}

function selectProgram(request, { text, choices, lora_path: scoring, unconditional }) {
  const { image_data: given, lora_path: all } = request.body;
  const images = given?.length && Array.isArray(given[0]) ? given[0] : given;
  const adapter = scoring ?? (Array.isArray(all) ? all[0] : all);
  const method = unconditional ? ", choices_method=sgl.unconditional_likelihood_normalized" : "";
  const select = `sgl.select("answer", choices=${python(choices, 1)}${method})`;
  return program("request", languageHead(request), [...piecesOf({ text, image_data: images }, request.omitted), select], "answer", adapter);
}

/** A message of a conversation. */
function turn(message) {
  if (!["system", "user", "assistant"].includes(message.role) || message.tool_calls) throw new Inexpressible("it has calls of tools");
  if (typeof message.content === "string") return `sgl.${message.role}(${pythonText(message.content)})`;
  const parts = (message.content ?? []).map((part) => (part.type === "image_url" ? imageOf(part.image_url.url) : pythonText(part.text)));
  return `sgl.${message.role}(${parts.join(" + ") || '""'})`;
}

function conversationProgram(request) {
  const { model, messages, continue_final_message: goesOn, response_format: format, tools, chat_template_kwargs: kwargs, ...options } = request.body;
  const unsaid = [tools && "tools", kwargs && "chat_template_kwargs"].filter(Boolean);
  if (unsaid.length) throw new Inexpressible(`it has ${unsaid.join(" and ")}`);
  const { base, adapter } = partsOf(server.value, model);
  const schema = format?.json_schema?.schema;
  const constraint = schema ? { json_schema: JSON.stringify(schema) } : {};
  const begun = goesOn ? `${pythonText(messages.at(-1).content)} + ` : "";
  const turns = (goesOn ? messages.slice(0, -1) : messages).map(turn);
  const gen = `sgl.gen("answer"${genArgs({ max_tokens: null, ...defaultsFor(base, options), ...options, ...constraint })})`;
  return program("conversation", languageHead({ ...request, model: base }), [...turns, `sgl.assistant(${begun}${gen})`], "answer", adapter);
}

/** What the chat takes from the model where a request says nothing, which the language does not. */
function defaultsFor(base, options) {
  if (base !== partsOf().base) return {}; // they are known of the chosen model
  return Object.fromEntries(FIELDS.map((field) => [field.name, defaultOf(field, options)]).filter(([, value], i) => value !== FIELDS[i].plain));
}

export const FORMS = [["curl", asCurl], ["openai", asOpenai], ["sglang", asLanguage]];
