// All branches of a conversation as a tree. A run of messages without a fork is one row of dots; a fork begins new rows.
import { html, useStore, Dialog } from "../lib.js";
import { childTable, current, pathTo, show } from "./conversations.js";

const WHO = { user: "You", assistant: "Model", tool: "Tool" };

function rows(table, parent, depth, found) {
  for (const node of table.get(parent) ?? []) {
    found.push({ node, depth });
    const children = table.get(node.id) ?? [];
    rows(table, node.id, children.length > 1 ? depth + 1 : depth, found);
  }
  return found;
}

export function BranchTree({ onClose }) {
  const conversation = useStore(current);
  const path = new Set(pathTo(conversation).map((node) => node.id));
  const table = childTable(conversation);
  const all = rows(table, null, (table.get(null) ?? []).length > 1 ? 1 : 0, []);
  return html`<${Dialog} title="Branches" onClose=${onClose} wide>
    <p class="hint">Every version of every message. Choose one to see the conversation that it is in.</p>
    <ul class="branch-tree">${all.map(({ node, depth }) => html`<li style=${{ "--depth": Math.min(depth, 12) }}>
      <button type="button" class=${path.has(node.id) ? "on" : ""} aria-current=${path.has(node.id) ? "true" : undefined} onClick=${() => {
        show(conversation, node.id);
        onClose();
      }}><b>${WHO[node.role]}</b> ${(node.content || node.error || (node.images?.length ? "image" : "…")).replace(/\s+/g, " ").slice(0, 90)}${node.tokens?.some((token) => token.chosen) ? html`<em>from a token</em>` : ""}</button>
    </li>`)}</ul>
  <//>`;
}
