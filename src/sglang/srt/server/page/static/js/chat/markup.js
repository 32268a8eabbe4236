// Text of a model as markup. Three fences: markdown-it makes no markup of markup (html: false), DOMPurify takes out whatever
// could run or load something, and the browser runs nothing but the page's own files (the policy of page/files.py).
import markdownIt from "../../vendor/markdown-it.js";
import purify from "../../vendor/dompurify.js";
import temml from "../../vendor/temml.js";

const SHORT_MATH = 4000;
/** of a formula: signs between the cells of its matrices, and characters of its markup */
const MAX_SIGNS = 200;
const MAX_FORMULA = 20_000;
/** of a formula: its end is not looked for beyond */
const MATH_LINES = 50;
/** of a table; a wider one is shown as it was written */
const MAX_COLUMNS = 100;
/** of all rows of a table that are drawn together */
const MAX_CELLS = 1000;
/** Things that stand in each other. */
const DEEPEST = 20;
export const md = markdownIt({ html: false, linkify: true, breaks: false }).set({ maxNesting: DEEPEST });
const escape = md.utils.escapeHtml;

function renderMath(source, display) {
  if (source.length > SHORT_MATH || source.split("&").length > MAX_SIGNS) return `<code>${escape(source)}</code>`;
  try {
    const markup = temml.renderToString(source, { displayMode: display, throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 500] });
    if (markup.length > MAX_FORMULA) return `<code>${escape(source)}</code>`;
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

/** Rows of a table that are read at once: the lines behind them are for the next reading (blocks.js). */
export const mostRows = (columns) => Math.max(Math.floor(MAX_CELLS / columns), 10);

const tableRule = md.block.ruler.__rules__.find(({ name }) => name === "table").fn;

function boundedTable(state, startLine, endLine, silent) {
  if (startLine + 2 > endLine) return false;
  const columns = columnsOf(state.src.slice(state.bMarks[startLine + 1], state.eMarks[startLine + 1]));
  return columns <= MAX_COLUMNS && tableRule(state, startLine, Math.min(endLine, startLine + 2 + mostRows(columns)), silent);
}

/** of the line between the heads of a table and its rows */
export const columnsOf = (line) => Math.max(line.split("|").length - 1, 1);

md.block.ruler.at("table", boundedTable, { alt: ["paragraph", "reference"] });
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

export const clean = (markup) => purify.sanitize(markup, CLEAN);

/** Markup of a whole text, which is safe to show. */
export const toMarkup = (text) => clean(md.render(text));
