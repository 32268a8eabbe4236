// Sampling options: what the user set is sent, everything else is the model's.
import { html, useEffect, useState, useStore, parseJson, KeptStore, Dialog } from "../lib.js";
import { choose, loadServer, modelOf, server } from "../api.js";
import { current, setSystem, systemOf } from "./conversations.js";

/** name, what it is called, least, most, step (1: whole numbers), what holds if nobody says anything */
export const FIELDS = [
  { name: "temperature", label: "Temperature", least: 0, most: 2, step: 0.05, plain: 1, hint: "0: always the likeliest token" },
  { name: "top_p", label: "Top p", least: 0.01, most: 1, step: 0.01, plain: 1, hint: "the likeliest tokens with this probability together" },
  { name: "top_k", label: "Top k", least: -1, most: 1000, step: 1, plain: -1, hint: "the k likeliest tokens; -1: all" },
  { name: "min_p", label: "Min p", least: 0, most: 1, step: 0.01, plain: 0, hint: "tokens at least this likely, relative to the likeliest" },
  { name: "max_tokens", label: "Max tokens", least: 1, most: 1e6, step: 1, plain: "what fits", hint: "the longest answer, in tokens" },
  { name: "repetition_penalty", label: "Repetition penalty", least: 0.01, most: 2, step: 0.01, plain: 1, hint: "above 1: says things less often again" },
  { name: "frequency_penalty", label: "Frequency penalty", least: -2, most: 2, step: 0.1, plain: 0, hint: "per earlier occurrence" },
  { name: "presence_penalty", label: "Presence penalty", least: -2, most: 2, step: 0.1, plain: 0, hint: "for tokens that occurred" },
  { name: "seed", label: "Seed", least: 0, most: 2 ** 53 - 1, step: 1, plain: "a new one", hint: "the same seed gives the same answer" },
];

const words = (value) => (typeof value === "string" ? value : "");

/** The number that the server takes which is nearest to one. */
function nearest({ name, least, most, step }, number) {
  const found = Math.min(Math.max(step === 1 ? Math.round(number) : number, least), most);
  return name === "top_k" && found === 0 ? -1 : found; // many programs say 0 for all
}

function soundOptions(kept) {
  const isOne = (field) => Number.isFinite(kept?.sampling?.[field.name]) && kept.sampling[field.name] === nearest(field, kept.sampling[field.name]);
  const sampling = Object.fromEntries(FIELDS.filter(isOne).map(({ name }) => [name, kept.sampling[name]]));
  return { sampling, stop: words(kept?.stop), tools: words(kept?.tools), thinking: typeof kept?.thinking === "boolean" ? kept.thinking : null };
}

export const options = new KeptStore("sglang.options", soundOptions);
/** How answers are shown: "text", "origins" of tokens, or "tokens" with their probabilities. */
export const tokenView = new KeptStore("sglang.tokenView", (kept) => (["tokens", "origins"].includes(kept) ? kept : "text"));

/** What is said where the model's own options are not to hold: {temperature: 1, ...} of those that it has. */
export const plainSampling = () => Object.fromEntries(FIELDS.filter(({ name, plain }) => name in (server.value?.info?.sampling_defaults ?? {}) && typeof plain === "number").map(({ name, plain }) => [name, plain]));

const PENALTIES = ["repetition_penalty", "frequency_penalty", "presence_penalty"];

/** `sampling`: what is set. The model's own penalties don't apply to greedy decoding. */
export function defaultOf(field, sampling) {
  const info = server.value?.info ?? {};
  const models = { ...info.sampling_defaults };
  if (sampling.temperature === 0 || sampling.top_k === 1) for (const name of PENALTIES) delete models[name];
  const known = { ...models, ...info.preferred_sampling_params };
  const name = field.name === "max_tokens" ? "max_new_tokens" : field.name;
  return known[name] ?? field.plain;
}

/** The tools of the options, parsed. Throws an Error that says what is wrong. */
export function toolsOf(text) {
  if (!text.trim()) return null;
  let tools;
  try {
    tools = parseJson(text);
  } catch (error) {
    throw new Error(`The tools are not JSON: ${error.message}`);
  }
  if (!Array.isArray(tools)) throw new Error("The tools must be a list: [{\"type\": \"function\", \"function\": {...}}]");
  return tools.length ? tools : null;
}

const EXAMPLE_TOOLS = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather in a city",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

function NumberField({ field, fallback, value, onChange }) {
  const id = `option-${field.name}`;
  const set = (text) => onChange(text === "" ? undefined : nearest(field, Number(text)));
  const isRange = field.most <= 2;
  const [typed, setTyped] = useState(null); // until it is complete; what is drawn again meanwhile must not take it away
  return html`<div class="option">
    <label for=${id}>${field.label}</label>
    <span class="hint" id=${`${id}-hint`}>${field.hint}</span>
    <div class="option-inputs">
      ${isRange &&
      html`<input type="range" aria-label=${`${field.label}, slider`} min=${field.least} max=${field.most} step=${field.step} value=${value ?? fallback} onInput=${(event) => set(event.target.value)} />`}
      <input
        id=${id}
        type="number"
        aria-describedby=${`${id}-hint`}
        min=${field.least}
        max=${field.most}
        step=${field.step}
        value=${typed ?? value ?? ""}
        placeholder=${fallback}
        onInput=${(event) => setTyped(event.target.value)}
        onChange=${(event) => { setTyped(null); set(event.target.value); }}
      />
      ${value !== undefined && html`<button type="button" class="quiet" onClick=${() => onChange(undefined)} aria-label=${`${field.label}: back to the default, ${fallback}`}>Default</button>`}
    </div>
  </div>`;
}

export function OptionsDialog({ onClose }) {
  const set = useStore(options);
  const known = useStore(server);
  const conversation = useStore(current);
  const [problem, setProblem] = useState(null);
  const change = (name, value) => {
    const sampling = { ...options.value.sampling }; // what is drawn may be older
    if (value === undefined) delete sampling[name];
    else sampling[name] = value;
    options.put({ sampling });
  };
  const setTools = (text) => {
    options.put({ tools: text });
    try {
      toolsOf(text);
      setProblem(null);
    } catch (error) {
      setProblem(error.message);
    }
  };
  const models = known?.models ?? [];
  useEffect(() => {
    loadServer(); // adapters come and go
  }, []);
  return html`<${Dialog} title="Options" onClose=${onClose} wide>
    <div class="options">
      ${models.length > 1 &&
      html`<div class="option"><label for="option-model">Model</label>
        ${!known.info && html`<span class="hint">the first message loads it</span>`}
        <select id="option-model" value=${modelOf(known)} onChange=${(event) => choose(event.target.value)}>
          ${models.map((model) => html`<option value=${model.name}>${model.name}${model.loaded === false ? " (not in memory)" : ""}</option>`)}
        </select></div>`}
      <div class="option whole">
        <label for="option-system">System prompt</label>
        <span class="hint">of this conversation</span>
        <textarea id="option-system" rows="3" value=${systemOf(conversation)} onInput=${(event) => setSystem(conversation, event.target.value)} />
      </div>
      ${FIELDS.map((field) => html`<${NumberField} key=${field.name} field=${field} fallback=${defaultOf(field, set.sampling)} value=${set.sampling[field.name]} onChange=${(value) => change(field.name, value)} />`)}
      <div class="option">
        <label for="option-thinking">Reasoning</label>
        <span class="hint">for models that can be told</span>
        <select id="option-thinking" value=${String(set.thinking)} onChange=${(event) => options.put({ thinking: { null: null, true: true, false: false }[event.target.value] })}>
          <option value="null">As the model likes</option><option value="true">On</option><option value="false">Off</option>
        </select>
      </div>
      <div class="option whole">
        <label for="option-stop">Stop strings</label>
        <span class="hint">one a line; the answer ends before them</span>
        <textarea id="option-stop" rows="2" value=${set.stop} onInput=${(event) => options.put({ stop: event.target.value })} />
      </div>
      <div class="option whole">
        <label for="option-tools">Tools</label>
        <span class="hint">JSON, as in OpenAI's API; you answer the calls yourself</span>
        <textarea id="option-tools" class="mono" rows="4" spellcheck="false" aria-invalid=${problem !== null} value=${set.tools} onInput=${(event) => setTools(event.target.value)} />
        ${problem && html`<p class="error" role="alert">${problem}</p>`}
        ${!set.tools && html`<button type="button" class="quiet" onClick=${() => setTools(JSON.stringify(EXAMPLE_TOOLS, null, 2))}>Example</button>`}
      </div>
    </div>
    <footer>
      <button type="button" class="quiet" onClick=${() => options.put({ sampling: {}, stop: "", tools: "", thinking: null })}>All defaults</button>
      <button type="button" class="primary" onClick=${onClose}>Done</button>
    </footer>
  <//>`;
}
