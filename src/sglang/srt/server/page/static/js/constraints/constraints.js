// Constraints: an editor that says what is wrong while it is written, and the answer as it is held to them.
import { html, useState, useEffect, useRef, useStore, parseJson, Icon, KeptStore, Store, inTab } from "../lib.js";
import { CHAT, events, modelOf, pathOf, postJson, send, server } from "../api.js";
import { RequestCode } from "../request_code.js";
import { JsonError, readBeginning, readJson } from "./json_text.js";
import { EXAMPLES } from "./examples.js";
import { Field, NUM_COMING } from "./form.js";
import { placeOf } from "./places.js";

const KINDS = [["json_schema", "JSON schema"], ["regex", "Regular expression"], ["ebnf", "Grammar"]];
const CHECK_MS = 350;
/** until a server that could not say anything is asked again */
const AGAIN_MS = 3000;

/** What is written here stays while other views are looked at, and over a reload; an answer goes on meanwhile. */
const written = new KeptStore("sglang.constraint", soundly, inTab);
const answered = new Store(null);
let running = null;

function soundly(kept) {
  const texts = Object.fromEntries(KINDS.map(([kind]) => [kind, typeof kept?.texts?.[kind] === "string" ? kept.texts[kind] : EXAMPLES[kind][0].text]));
  const kind = Object.hasOwn(texts, kept?.kind) ? kept.kind : KINDS[0][0];
  return { kind, texts, prompt: typeof kept?.prompt === "string" ? kept.prompt : EXAMPLES[kind][0].prompt };
}

function whereIs(text, at) {
  const before = text.slice(0, at).split("\n");
  return `line ${before.length}, column ${before.at(-1).length + 1}`;
}

/** Whether a text is JSON, whatever it says. */
function isWhole(text) {
  try {
    return parseJson(text) !== undefined;
  } catch {
    return false;
  }
}

/** What is wrong with a constraint: {message, place, isPassing}, or null. `isPassing`: it may be right in a moment. The server has the last word: it compiles it, and generates nothing. */
async function check(kind, text, signal) {
  if (!text.trim()) return { message: "There is no constraint yet.", place: null };
  if (kind === "json_schema") {
    try {
      readJson(text);
    } catch (error) {
      if (!(error instanceof JsonError)) throw error;
      const at = Math.min(error.at, text.length);
      return { message: `JSON: ${error.message}`, place: [at, Math.max(at + 1, at)] };
    }
  }
  try {
    await postJson(pathOf("/generate"), { text: " ", sampling_params: { max_new_tokens: 0, [kind]: text } }, signal);
    return null;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const isPassing = error.status === 0 || error.status === 429 || error.status >= 500;
    return { message: error.message, place: error.status === 400 ? placeOf(kind, text, error.message) : null, isPassing };
  }
}

function Editor({ kind, text, onInput, problem }) {
  const back = useRef(null);
  const [from, to] = problem?.place ?? [-1, -1];
  const scroll = (event) => {
    back.current.scrollTop = event.target.scrollTop;
    back.current.scrollLeft = event.target.scrollLeft;
  };
  const key = (event) => {
    if (event.key !== "Tab" || event.shiftKey || event.ctrlKey || !event.target.value) return;
    if (event.target.dataset.left) return; // Escape, then Tab leaves the editor
    event.preventDefault();
    event.target.setRangeText("  ", event.target.selectionStart, event.target.selectionEnd, "end");
    onInput(event.target.value);
  };
  return html`<div class="code-editor">
    <pre class="editor-back" ref=${back} aria-hidden="true">${from >= 0 ? html`${text.slice(0, from)}<mark>${text.slice(from, to) || " "}</mark>${text.slice(to)}` : text}${"\n "}</pre>
    <textarea class="mono" spellcheck="false" wrap="off" aria-label=${KINDS.find(([name]) => name === kind)[1]} aria-describedby="constraint-problem constraint-keys" aria-invalid=${String(problem !== null)} value=${text}
      onInput=${(event) => onInput(event.target.value)} onScroll=${scroll} onKeyDown=${(event) => {
        if (event.key === "Escape") event.target.dataset.left = "1";
        else if (event.key !== "Tab") delete event.target.dataset.left;
        key(event);
      }} />
  </div>`;
}

export function Constraints() {
  const { kind, texts, prompt } = useStore(written);
  const answer = useStore(answered);
  const known = useStore(server);
  const [verdict, setVerdict] = useState(null); // {kind, text, problem}: what was checked last
  const [view, setView] = useState("form");
  const text = texts[kind];
  const put = (value) => written.put({ texts: { ...written.value.texts, [kind]: value } });
  const isChecked = verdict?.kind === kind && verdict.text === text;
  const problem = isChecked ? verdict.problem : null;

  useEffect(() => {
    const abort = new AbortController();
    let timer = setTimeout(ask, CHECK_MS);
    async function ask() {
      try {
        const found = await check(kind, text, abort.signal);
        setVerdict({ kind, text, problem: found });
        if (found?.isPassing) timer = setTimeout(ask, AGAIN_MS);
      } catch (error) {
        if (error.name !== "AbortError") throw error;
      }
    }
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [kind, text, known]); // another key, or another model

  const body = () => {
    const constraint = kind === "json_schema" ? { response_format: { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) } } } : { [kind]: text };
    return { model: modelOf(server.value) ?? "default", messages: [{ role: "user", content: prompt }], max_tokens: 500, ...constraint };
  };
  const run = async () => {
    running?.abort();
    const abort = new AbortController();
    running = abort;
    const grown = { text: "", error: null, busy: true, finish: null };
    answered.set(grown);
    try {
      const response = await send(CHAT, { ...body(), stream: true }, abort.signal);
      for await (const event of events(response)) {
        const choice = event.choices?.[0];
        grown.text += choice?.delta?.content ?? "";
        grown.finish = choice?.finish_reason ?? grown.finish;
        if (running === abort) answered.set({ ...grown });
      }
    } catch (error) {
      if (error.name !== "AbortError") grown.error = error.message;
    }
    if (running === abort) answered.set({ ...grown, busy: false });
  };
  const choose = (event) => {
    const example = EXAMPLES[kind][Number(event.target.value)];
    if (!example) return;
    put(example.text);
    written.put({ prompt: example.prompt });
    event.target.value = "";
  };
  const schema = kind === "json_schema" && !problem ? readBeginning(text) : null;
  const isJson = kind !== "json_schema" || isWhole(text);
  const views = [...(kind === "json_schema" ? [["form", "Form"]] : []), ["text", "Text"], ["code", "Code"]];
  const shown = views.some(([name]) => name === view) ? view : "text";
  return html`<div class="view constraints">
    <section aria-label="Constraint">
      <div class="segments" role="group" aria-label="Kind of constraint">${KINDS.map(([name, label]) => html`<button type="button" aria-pressed=${String(kind === name)} onClick=${() => written.put({ kind: name })}>${label}</button>`)}
        <span class="space"></span>
        <select class="examples" aria-label="Examples" onChange=${choose}><option value="">Examples</option>${EXAMPLES[kind].map((example, i) => html`<option value=${i}>${example.name}</option>`)}</select>
      </div>
      <${Editor} kind=${kind} text=${text} onInput=${put} problem=${problem} />
      <p id="constraint-problem" role="status" class=${problem ? "error" : isChecked ? "good" : ""}>${problem ? html`${problem.place && html`<b>${whereIs(text, problem.place[0])}: </b>`}${problem.message}` : isChecked ? "The server can follow it." : "Checking …"}</p>
      <p id="constraint-keys" class="hint">Tab indents; Escape, then Tab leaves the editor.</p>
      <label class="field">Question <textarea rows="3" value=${prompt} dir="auto" onInput=${(event) => written.put({ prompt: event.target.value })} /></label>
      <div class="row"><span class="space"></span>
        ${answer?.busy && html`<button type="button" onClick=${() => running.abort()}><${Icon} name="stop" /> Stop</button>`}
        <button type="button" class="primary" disabled=${problem !== null || !isJson || answer?.busy} onClick=${run}>Generate</button></div>
    </section>
    <section aria-label="Answer" aria-busy=${String(answer?.busy === true)}>
      <div class="segments" role="group" aria-label="Answer as">${views.map(([name, label]) => html`<button type="button" aria-pressed=${String(shown === name)} onClick=${() => setView(name)}>${label}</button>`)}</div>
      ${answer?.error && html`<p class="error" role="alert">${answer.error}</p>`}
      ${shown === "form" && html`<div class="form"><${Field} name=${null} coming=${{ left: NUM_COMING }} schema=${schema} root=${schema} value=${answer ? readBeginning(answer.text) : undefined} /></div>`}
      ${shown === "text" && html`<pre class="answer-text" tabindex="0"><code>${answer?.text ?? ""}</code></pre>`}
      ${shown === "code" && (problem || !isJson ? html`<p class="hint">Mend the constraint first.</p>` : html`<${RequestCode} request=${{ path: CHAT, body: body() }} />`)}
      ${answer?.finish === "length" && html`<p class="hint">The answer was cut after 500 tokens.</p>`}
    </section>
  </div>`;
}
