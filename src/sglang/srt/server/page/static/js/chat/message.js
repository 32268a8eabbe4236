// One message: what it says, and what can be done with it.
import { html, Component, useLayoutEffect, useRef, useState, CopyButton, Icon, IconButton, parseJson, plural, Question, short, seconds } from "../lib.js";
import { add, childrenOf, current, cut, numBelow, openCalls, show } from "./conversations.js";
import { answer, requestOf, stop } from "./generate.js";
import { Long, Markdown } from "./markdown.js";
import { Legend, textBefore, Tokens } from "./tokens.js";
import { tokenView } from "./options.js";
import { CHAT } from "../api.js";
import { CodeDialog } from "../request_code.js";

function Branches({ node }) {
  const siblings = childrenOf(current.value, node.parent);
  if (siblings.length < 2) return null;
  const at = siblings.findIndex((other) => other.id === node.id);
  const go = (step) => show(current.value, siblings[at + step].id);
  return html`<span class="branch-switch" role="group" aria-label="Versions of this message">
    <${IconButton} icon="left" label="Earlier version" disabled=${at === 0} onClick=${() => go(-1)} />
    <span aria-label=${`version ${at + 1} of ${siblings.length}`}>${at + 1}/${siblings.length}</span>
    <${IconButton} icon="right" label="Later version" disabled=${at === siblings.length - 1} onClick=${() => go(1)} />
  </span>`;
}

/** What is said of answers that did not end by themselves. */
const ENDS = new Map([["length", "cut at max tokens"], ["stopped", "stopped"], ["abort", "ended by the server"]]);

function Stats({ node }) {
  const { stats } = node;
  if (!stats || stats.completion === null) {
    const why = node.finish === "stopped" ? "stopped" : node.finish || node.error || node.edited ? null : "not complete";
    return why && html`<p class="stats">${why}</p>`;
  }
  const parts = [
    `${short(stats.completion)} tokens`,
    stats.rate && `${stats.rate.toFixed(1)} tokens/s`,
    stats.first !== null && `first after ${seconds(stats.first)}`,
    stats.prompt !== null && `prompt ${short(stats.prompt)}${stats.cached ? `, ${short(stats.cached)} cached` : ", none cached"}`,
    ENDS.get(node.finish),
  ];
  return html`<p class="stats">${parts.filter(Boolean).map((part) => html`<span>${part}</span>`)}</p>`;
}

function Editor({ node, onClose }) {
  const [text, setText] = useState(node.content);
  const area = useRef(null);
  useLayoutEffect(() => area.current.focus(), []);
  const conversation = current.value;
  const keep = () => {
    onClose();
    if (node.role === "assistant") {
      add(conversation, node.parent, "assistant", { content: text, calls: node.calls, reasoning: node.reasoning, edited: true });
      return;
    }
    const more = { content: text, images: node.images, files: node.files, callId: node.callId };
    const edited = add(conversation, node.parent, node.role, more);
    if (!openCalls(conversation).calls.length) answer(conversation, edited.id);
  };
  return html`<form class="editor" onSubmit=${(event) => {
    event.preventDefault();
    keep();
  }}>
    <textarea ref=${area} aria-label="Edit the message" rows=${Math.min(Math.max(text.split("\n").length, 2), 20)} value=${text} onInput=${(event) => setText(event.target.value)}
      onKeyDown=${(event) => {
        if (event.key === "Escape") {
          event.stopPropagation(); // an answer that grows goes on
          onClose();
        }
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) keep();
      }} />
    <div class="row"><button type="button" class="quiet" onClick=${onClose}>Cancel</button><button class="primary">${node.role === "assistant" ? "Keep as a new version" : "Send as a new branch"}</button></div>
  </form>`;
}

function ToolCall({ call, isOpen }) {
  const conversation = current.value;
  const [result, setResult] = useState("");
  let args = call.arguments;
  try {
    args = JSON.stringify(parseJson(call.arguments), null, 2);
  } catch {
    // it is still being written, or no JSON to be laid out
  }
  const send = (event) => {
    event.preventDefault();
    if (!openCalls(conversation).calls.includes(call)) return; // a second click
    const tool = add(conversation, conversation.leaf, "tool", { content: result, callId: call.id });
    if (!openCalls(conversation).calls.length) answer(conversation, tool.id);
  };
  return html`<div class="tool-call">
    <p><${Icon} name="code" /> calls <code>${call.name.slice(0, LONGEST_NAME)}</code></p>
    <pre tabindex="0"><code><${Long} text=${args} /></code></pre>
    ${isOpen && html`<form onSubmit=${send}><label>Its result <input value=${result} onInput=${(event) => setResult(event.target.value)} placeholder="what the tool gives back" /></label><button>Send</button></form>`}
  </div>`;
}

function Body({ node, busy }) {
  if (node.role === "user") return html`<div class="said"><${Long} text=${node.content} /></div>`;
  if (node.role === "tool") return html`<pre tabindex="0" class="tool-result"><code><${Long} text=${node.content} /></code></pre>`;
  const branch = (index, other) => {
    const before = textBefore(node.tokens, index);
    if (before === null) return;
    const tokens = [...node.tokens.slice(0, index), { ...other, a: node.tokens[index].a, chosen: true }];
    answer(current.value, node.parent, { begun: before + other.t, tokens });
  };
  if (tokenView.value !== "text" && node.tokens) return html`<${Tokens} tokens=${node.tokens} view=${tokenView.value} scored=${node.scored} busy=${busy} onPick=${branch} />`;
  return html`<${Markdown} text=${node.content} busy=${busy} />`;
}

/** Of a double click the second one does nothing: by then something else may be there. */
const once = (act) => (event) => event.detail < 2 && act();

function Tools({ node, busy, onEdit, onCode, onDelete }) {
  const conversation = current.value;
  if (busy) return html`<div class="message-tools"><button type="button" class="stop" onClick=${() => stop(node)}><${Icon} name="stop" /> Stop</button></div>`;
  return html`<div class="message-tools">
    <${Branches} node=${node} />
    <${CopyButton} text=${node.content} label="Copy the message" />
    <${IconButton} icon="edit" label="Edit" onClick=${onEdit} />
    ${node.role === "assistant" && html`<${IconButton} icon="redo" label="Answer again" onClick=${once(() => answer(conversation, node.parent))} />`}
    ${node.role === "assistant" && html`<${IconButton} icon="right" label="Go on with this answer" onClick=${once(() => answer(conversation, node.parent, { begun: node.content, tokens: node.tokens ? node.tokens.filter((token) => token.t) : null }))} />`}
    ${node.role === "assistant" && html`<${IconButton} icon="code" label="The request as code" onClick=${onCode} />`}
    <${IconButton} icon="trash" label="Delete this message and what follows" onClick=${once(onDelete)} />
  </div>`;
}

const LONGEST_NAME = 300;
const LONGEST_ERROR = 5000;
const WHO = { user: "You", assistant: "Model", tool: "Tool" };

/** Drawn anew only if its version, or what surrounds it, has changed. `open`: a 1 for each of its calls that waits for a result, else a 0. */
export class Message extends Component {
  shouldComponentUpdate(next, state) {
    const same = ["node", "version", "busy", "tokens", "siblings", "open"].every((name) => next[name] === this.props[name]);
    return !same || state !== this.state;
  }

  componentDidUpdate(_, before) {
    if (before.editing && !this.state.editing && document.activeElement === document.body) this.base.querySelector("[aria-label=Edit]")?.focus();
  }

  render({ node, busy, tokens, open }, { editing, code, unwanted }) {
    const close = () => this.setState({ editing: false, code: false, unwanted: false });
    const conversation = current.value;
    const remove = () => (numBelow(conversation, node.id) ? this.setState({ unwanted: true }) : cut(conversation, node.id));
    return html`<article class=${`message ${node.role}`} aria-label=${`${WHO[node.role]} said`} aria-busy=${busy}>
      <h3 class="who">${WHO[node.role]}</h3>
      ${node.images?.length > 0 && html`<div class="images">${node.images.map((url, i) => html`<img src=${url} alt=${`image ${i + 1} of the message`} />`)}</div>`}
      ${node.files?.length > 0 && html`<ul class="files">${node.files.map((file) => html`<li><${Icon} name="file" /> ${file.name.slice(0, LONGEST_NAME)}</li>`)}</ul>`}
      ${node.reasoning && html`<details class="reasoning" open=${busy && !node.content}><summary>Reasoning</summary><${Markdown} text=${node.reasoning} busy=${busy} /></details>`}
      ${editing ? html`<${Editor} node=${node} onClose=${close} />` : html`<${Body} node=${node} busy=${busy} />`}
      ${busy && !node.content && !node.reasoning && html`<p class="waiting" aria-label="waiting for the first token"><i></i><i></i><i></i></p>`}
      ${tokens !== "text" && node.tokens && !busy && html`<${Legend} view=${tokens} />`}
      ${node.calls?.map((call, i) => html`<${ToolCall} key=${i} call=${call} isOpen=${!busy && open[i] === "1"} />`)}
      ${node.error && html`<p class="error" role="alert"><${Long} text=${node.error} most=${LONGEST_ERROR} /></p>`}
      ${node.role === "assistant" && !busy && html`<${Stats} node=${node} />`}
      ${!editing && html`<${Tools} node=${node} busy=${busy} onEdit=${() => this.setState({ editing: true })} onCode=${() => this.setState({ code: true })} onDelete=${remove} />`}
      ${code && html`<${CodeDialog} request=${() => ({ path: CHAT, body: requestOf(current.value, node) })} onClose=${close} />`}
      ${unwanted && html`<${Question} title="Delete this message?" name="Delete" onYes=${() => cut(conversation, node.id)} onClose=${close}>
        <p>${plural(numBelow(conversation, node.id), "message")} after it will be deleted as well, in all versions.</p><//>`}
    </article>`;
  }
}
