// The request behind something on the page, to look at and to copy.
import { html, useEffect, useState, CopyButton, Dialog } from "./lib.js";
import { FORMS } from "./code_forms.js";

const MAX_SHOWN = 400_000;
/** of data in base64, which nobody reads */
const NUM_DATA = 60;

const shortened = (text) => text.replace(/[A-Za-z0-9+/_-]{2000,}={0,2}/g, (data) => `${data.slice(0, NUM_DATA)}…(${data.length} characters)`).slice(0, MAX_SHOWN);

export function RequestCode({ request }) {
  const [form, setForm] = useState("curl");
  const text = FORMS.find(([name]) => name === form)[1](request);
  const shown = shortened(text);
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
    ${shown !== text && html`<p class="hint">Long data are shown shortened. What is copied is whole.</p>`}
    <pre tabindex="0" role="tabpanel" aria-label="Code"><code>${shown}</code></pre>
  </div>`;
}

/** `request` makes the request, or a promise of it, as code_forms.js has it. It throws an Error if there is none. */
export function CodeDialog({ request, onClose }) {
  const [found, setFound] = useState({});
  useEffect(() => {
    let isOver = false;
    const put = (value) => isOver || setFound(value);
    Promise.resolve().then(request).then((made) => put({ made }), (error) => put({ error }));
    return () => (isOver = true);
  }, []);
  const { made, error } = found;
  return html`<${Dialog} title="The request as code" onClose=${onClose} wide>
    ${made && html`<${RequestCode} request=${made} />`}
    ${error && html`<p class="error" role="alert">${error.message}</p>`}
  <//>`;
}
