// All branches of a conversation as a tree. A run of messages without a fork is one row of dots; a fork begins new rows.
import { html, useStore, Dialog } from "../lib.js";
import { childTable, current, pathTo, show } from "./conversations.js";

const WHO = { user: "You", assistant: "Model", tool: "Tool" };

const MAX_ROWS = 1000;

function rows(table) {
  const found = [];
  const below = (parent, depth) => {
    const children = table.get(parent) ?? [];
    return children.map((node) => ({ node, depth: children.length > 1 ? depth + 1 : depth })).reverse();
  };
  const stack = below(null, 0);
  while (stack.length && found.length < MAX_ROWS) {
    const row = stack.pop();
    found.push(row);
    stack.push(...below(row.node.id, row.depth));
  }
  return { found, isCut: stack.length > 0 };
}

export function BranchTree({ onClose }) {
  const conversation = useStore(current);
  const path = new Set(pathTo(conversation).map((node) => node.id));
  const table = childTable(conversation);
  const { found, isCut } = rows(table);
  return html`<${Dialog} title="Branches" onClose=${onClose} wide>
    <p class="hint">Every version of every message. Choose one to see the conversation that it is in.</p>
    <ul class="branch-tree">${found.map(({ node, depth }) => html`<li style=${{ "--depth": Math.min(depth, 12) }}>
      <button type="button" class=${path.has(node.id) ? "on" : ""} aria-current=${path.has(node.id) ? "true" : undefined} onClick=${() => {
        show(conversation, node.id);
        onClose();
      }}><b>${WHO[node.role]}</b> ${(node.content || node.error || (node.images?.length ? "image" : "…")).slice(0, 300).replace(/\s+/g, " ").slice(0, 90)}${node.tokens?.some((token) => token.chosen) ? html`<em>from a token</em>` : ""}</button>
    </li>`)}</ul>
    ${isCut && html`<p class="hint">The first ${MAX_ROWS} messages are shown.</p>`}
  <//>`;
}
