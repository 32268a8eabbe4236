// Text of a model as markup. Three fences: markdown-it makes no markup of markup (html: false), DOMPurify takes out whatever
// could run or load something, and the browser runs nothing but the page's own files (the policy of page/files.py).
import { html, useEffect, useLayoutEffect, useRef, useState, copyText, withoutControls } from "../lib.js";
import markdownIt from "../../vendor/markdown-it.js";
import purify from "../../vendor/dompurify.js";
import temml from "../../vendor/temml.js";

const SHORT_MATH = 20000;
/** of a formula: its end is not looked for beyond */
const MATH_LINES = 100;
const md = markdownIt({ html: false, linkify: true, breaks: false });
const escape = md.utils.escapeHtml;

function renderMath(source, display) {
  if (source.length > SHORT_MATH) return `<code>${escape(source)}</code>`;
  try {
    const markup = temml.renderToString(source, { displayMode: display, throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 500] });
    return markup.replace(/ style="[^"]*"/g, ""); // styles in markup are against the page's policy
  } catch {
    return `<code class="math-source">${escape(source)}</code>`;
  }
}

/** [opening, closing] of mathematics, display first. */
const MATH = [["$$", "$$"], ["\\[", "\\]"], ["\\(", "\\)"], ["$", "$"]];

/** Where `close` comes next; what was found is kept, so that a text with many beginnings is searched once. */
function nextEnd(state, close, start) {
  state.mathEnds ??= new Map();
  const known = state.mathEnds.get(close);
  if (known && known.from <= start && start <= known.at) return known.at;
  const at = state.src.indexOf(close, start);
  state.mathEnds.set(close, { from: start, at: at < 0 ? Infinity : at });
  return at < 0 ? Infinity : at;
}

function inlineMath(state, silent) {
  for (const [open, close] of MATH) {
    if (!state.src.startsWith(open, state.pos)) continue;
    const start = state.pos + open.length;
    const end = nextEnd(state, close, start);
    const source = end > start + SHORT_MATH ? "" : state.src.slice(start, end);
    if (!source.trim()) continue;
    // "$5 and $6" are prices
    if (open === "$" && (/^\s|\s$|\\$/.test(source) || /^\d/.test(state.src.slice(end + 1)))) continue;
    if (!silent) {
      const token = state.push("math", "", 0);
      token.content = source;
      token.meta = open === "$$" || open === "\\[";
    }
    state.pos = end + close.length;
    return true;
  }
  return false;
}

function blockMath(state, startLine, endLine, silent) {
  const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]);
  const pair = [["$$", "$$"], ["\\[", "\\]"]].find(([open]) => line(startLine).startsWith(open));
  if (!pair) return false;
  const [open, close] = pair;
  let at = startLine;
  let text = line(at).slice(open.length);
  while (!text.trimEnd().endsWith(close)) {
    at += 1;
    if (at >= endLine || at > startLine + MATH_LINES) return false;
    text += `\n${line(at)}`;
  }
  if (silent) return true;
  const token = state.push("math", "", 0);
  token.block = true;
  token.content = text.trimEnd().slice(0, -close.length);
  token.meta = true;
  token.map = [startLine, at + 1];
  state.line = at + 1;
  return true;
}

md.inline.ruler.before("escape", "math", inlineMath);
md.block.ruler.before("fence", "math", blockMath, { alt: ["paragraph", "reference", "blockquote", "list"] });
md.renderer.rules.math = (tokens, i) => {
  const markup = renderMath(tokens[i].content, tokens[i].meta);
  return tokens[i].block ? `<div class="formula" tabindex="0">${markup}</div>` : markup;
};
md.renderer.rules.fence = md.renderer.rules.code_block = (tokens, i) => {
  const language = tokens[i].info.trim().split(/\s+/)[0].slice(0, 40);
  const name = escape(language || "text");
  return `<div class="code"><div class="code-bar"><span>${name}</span><button type="button" class="copy-code" aria-label="Copy code">Copy</button></div><pre tabindex="0"><code>${escape(tokens[i].content)}</code></pre></div>`;
};
for (const cell of ["th_open", "td_open"]) {
  md.renderer.rules[cell] = (tokens, i) => {
    const align = /text-align:(\w+)/.exec(tokens[i].attrGet("style") ?? "");
    return `<${tokens[i].tag}${align ? ` class="${align[1]}"` : ""}>`;
  };
}
md.renderer.rules.table_open = () => '<div class="table" tabindex="0"><table>';
md.renderer.rules.table_close = () => "</table></div>";
// an image would ask somebody else for it: it is shown as a link
md.renderer.rules.image = (tokens, i) => {
  const source = tokens[i].attrGet("src") ?? "";
  const text = escape(tokens[i].content || source);
  return isForeign(source) ? `<a href="${escape(source)}">${text}</a>` : `<span>${text}</span>`;
};

/** Links go to other hosts only: one to this server could be a request to it. */
function isForeign(address) {
  try {
    const url = new URL(address);
    return url.protocol === "mailto:" || (/^https?:$/.test(url.protocol) && url.host !== location.host);
  } catch {
    return false;
  }
}

const CLEAN = {
  USE_PROFILES: { html: true, mathMl: true },
  FORBID_TAGS: ["style", "form", "input", "img", "video", "audio", "iframe", "source", "picture"],
  FORBID_ATTR: ["style", "id", "name"],
  ALLOW_DATA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName.toLowerCase() !== "a") {
    node.removeAttribute?.("href");
    return;
  }
  if (!isForeign(node.getAttribute("href") ?? "")) {
    node.removeAttribute("href");
    return;
  }
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

const clean = (markup) => purify.sanitize(markup, CLEAN);

/** Markup of a whole text, which is safe to show. */
export const toMarkup = (text) => clean(md.render(text));

/** Markup of a text that grows. Blocks that are over are rendered once: all but the last one, which may go on. */
class Growing {
  constructor() {
    this.blocks = [];
    this.seen = "";
    this.offset = 0;
    this.env = {};
  }

  feed(text) {
    if (!text.startsWith(this.seen.slice(0, this.offset))) {
      this.blocks = [];
      this.offset = 0;
      this.env = {};
    }
    this.seen = text;
    const rest = text.slice(this.offset);
    const tokens = md.parse(rest, this.env);
    const starts = tokens.filter((token) => token.level === 0 && token.map && token.nesting >= 0).map((token) => token.map[0]);
    const last = starts.at(-1) ?? 0;
    const split = tokens.findIndex((token) => token.level === 0 && token.nesting >= 0 && token.map?.[0] === last);
    if (last > 0 && split > 0) {
      this.blocks.push(clean(md.renderer.render(tokens.slice(0, split), md.options, this.env)));
      this.offset += lineStart(rest, last);
      return clean(md.renderer.render(tokens.slice(split), md.options, this.env));
    }
    return clean(md.renderer.render(tokens, md.options, this.env));
  }
}

function lineStart(text, line) {
  let at = 0;
  for (let n = 0; n < line; n += 1) at = text.indexOf("\n", at) + 1;
  return at;
}

function onClick(event) {
  const button = event.target.closest?.(".copy-code");
  if (!button) return;
  copyText(withoutControls(button.closest(".code").querySelector("code").textContent));
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

const REST = 4;

/** When the next drawing may begin, after one that began then. */
function untilLaidOut(node, began) {
  node.getBoundingClientRect(); // has the browser lay it out now, so that this is measured, too
  const now = performance.now();
  return now + (REST - 1) * (now - began);
}

/** Characters of one text that are shown. All are kept, copied and sent. */
const MOST = 400_000;

const rest = (text, most = MOST) => (text.length > most ? html`<span class="hint rest">${text.length - most} more characters are not shown.</span>` : null);

/** A text that may be too long to be shown. */
export const Long = ({ text, most = MOST }) => html`${text.slice(0, most)}${rest(text, most)}`;

/** `busy`: the text grows. Drawing it then takes one part in REST of the time at most: a block without an end costs more with every token. */
export function Markdown({ text, busy = false }) {
  const box = useRef(null);
  const growing = useRef(null);
  const shown = useRef({ text: null, tail: "", until: 0 });
  const later = useRef(0);
  const [, again] = useState(0);
  const began = performance.now();
  const { until } = shown.current;
  growing.current ??= new Growing();
  if (shown.current.text !== text && (!busy || began >= until)) shown.current = { text, tail: growing.current.feed(text.slice(0, MOST)), until: 0 };
  useLayoutEffect(() => {
    clearTimeout(later.current);
    if (shown.current.text !== text) later.current = setTimeout(() => again((n) => n + 1), until - began);
    else if (!shown.current.until) shown.current.until = untilLaidOut(box.current, began);
  });
  useEffect(() => () => clearTimeout(later.current), []);
  const { blocks } = growing.current;
  return html`<div class="markdown" ref=${box} onClick=${onClick}>
    ${blocks.map((markup, i) => html`<div class="block" key=${i} dangerouslySetInnerHTML=${{ __html: markup }} />`)}
    <div class="block" key="tail" dangerouslySetInnerHTML=${{ __html: shown.current.tail }} />
    ${rest(text)}
  </div>`;
}
