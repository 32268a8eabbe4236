// The chat: conversations at the side, messages, and the composer.
import { html, useState, useEffect, useLayoutEffect, useRef, useStore, download, plural, readFile, Icon, IconButton, Question } from "../lib.js";
import { modelOf, server } from "../api.js";
import * as conversations from "./conversations.js";
import { BranchTree } from "./branches.js";
import { Composer } from "./composer.js";
import { isRunning, stop } from "./generate.js";
import { Long } from "./markdown.js";
import { Message } from "./message.js";
import { OptionsDialog, tokenView } from "./options.js";

/** of conversations, before they can be searched */
const NUM_UNSOUGHT = 12;
/** the last messages of a conversation, which are shown */
const NUM_SHOWN = 100;
const LONGEST_SYSTEM = 20_000;

function Kept({ onChoose }) {
  const list = useStore(conversations.list);
  const { id } = useStore(conversations.current);
  const [sought, setSought] = useState("");
  const [notice, setNotice] = useState(null);
  const [unwanted, setUnwanted] = useState(null);
  const picker = useRef(null);
  const importFile = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    try {
      setNotice(`${await conversations.importAll(await readFile(file))} imported`);
    } catch (error) {
      setNotice(`${file.name} was not imported: ${error.message}`);
    }
  };
  const exportAll = async () => {
    await conversations.keep();
    download("conversations.json", JSON.stringify({ conversations: await conversations.exportAll() }, null, 1));
  };
  const words = sought.toLowerCase().trim();
  const found = list.filter((entry) => entry.title.toLowerCase().includes(words));
  const start = () => {
    conversations.start();
    onChoose();
  };
  return html`<nav class="kept" aria-label="Conversations">
    <button type="button" class="new" onClick=${start}><${Icon} name="plus" /> New conversation</button>
    ${list.length > NUM_UNSOUGHT && html`<input type="search" aria-label="Find a conversation" placeholder="Find" value=${sought} onInput=${(event) => setSought(event.target.value)} />`}
    <ul>${found.map((entry) => html`<li key=${entry.id} class=${entry.id === id ? "on" : ""}>
      <button type="button" class="entry" aria-current=${entry.id === id ? "page" : undefined} onClick=${async () => {
        await conversations.keep();
        await conversations.open(entry.id);
        onChoose();
      }}>${entry.title || "Untitled"}</button>
      <${IconButton} icon="trash" label=${`Delete ${entry.title || "this conversation"}`} onClick=${() => setUnwanted(entry)} />
    </li>`)}</ul>
    <div class="row">
      <input ref=${picker} type="file" accept="application/json,.json" class="hidden" tabindex="-1" aria-label="Conversations to import" onChange=${importFile} />
      <button type="button" class="quiet" onClick=${() => picker.current.click()}>Import</button>
      <button type="button" class="quiet" onClick=${exportAll} disabled=${!list.length}>Export all</button>
    </div>
    ${notice && html`<p class="hint" role="status">${notice}</p>`}
    ${unwanted && html`<${Question} title="Delete this conversation?" name="Delete" onYes=${() => conversations.remove(unwanted.id)} onClose=${() => setUnwanted(null)}>
      <p class="named">${unwanted.title || "Untitled"}</p><p class="hint">It cannot be brought back.</p><//>`}
  </nav>`;
}

const STARTERS = [
  "What is a radix tree? Explain it in three sentences.",
  "Write a function in Python that reverses a linked list.",
  "Derive the quadratic formula, with the formulas in LaTeX.",
];

function Empty({ known }) {
  const put = (text) => {
    const area = document.querySelector(".composer textarea");
    area.value = text;
    area.dispatchEvent(new Event("input", { bubbles: true }));
    area.focus();
  };
  return html`<div class="empty">
    <h2>${modelOf(known) ?? "…"}</h2>
    <p>Conversations stay in this browser.</p>
    <ul>${STARTERS.map((text) => html`<li><button type="button" onClick=${() => put(text)}>${text}</button></li>`)}</ul>
  </div>`;
}

/** Keeps the end of the conversation in view while it grows, unless the user has scrolled away. */
function useEndInView(box, conversation) {
  const sticks = useRef(true);
  useLayoutEffect(() => {
    const node = box.current;
    const onScroll = () => {
      sticks.current = node.scrollHeight - node.scrollTop - node.clientHeight < 60;
    };
    node.addEventListener("scroll", onScroll, { passive: true });
    return () => node.removeEventListener("scroll", onScroll);
  }, []);
  useLayoutEffect(() => {
    sticks.current = true;
  }, [conversation.id]);
  useEffect(() => {
    const follow = new ResizeObserver(() => {
      if (sticks.current) box.current.scrollTop = box.current.scrollHeight;
    });
    follow.observe(box.current.firstElementChild);
    return () => follow.disconnect();
  }, []);
}

export function Chat({ drawer, setDrawer }) {
  const conversation = useStore(conversations.current);
  const tokens = useStore(tokenView);
  const known = useStore(server);
  const problem = useStore(conversations.storageError);
  const [whole, setWhole] = useState(null);
  const [dialog, setDialog] = useState(null);
  const box = useRef(null);
  useEndInView(box, conversation);
  const path = conversations.pathTo(conversation);
  const earlier = whole === conversation.id ? 0 : Math.max(path.length - NUM_SHOWN, 0);
  const system = conversations.systemOf(conversation);
  const counts = new Map();
  for (const node of Object.values(conversation.nodes)) counts.set(node.parent, (counts.get(node.parent) ?? 0) + 1);
  const busyNode = path.find(isRunning);
  const waiting = conversations.openCalls(conversation);
  const openOf = (node) => (node === waiting.node ? Array.from(node.calls ?? [], (call) => Number(waiting.calls.includes(call))).join("") : "");
  useLayoutEffect(() => {
    const key = (event) => {
      if (event.key === "Escape" && busyNode && !document.querySelector("dialog[open], .alternatives")) stop(busyNode);
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, [busyNode]);
  const exportOne = () => download(`${conversation.title.replace(/[^\p{L}\p{N}_-]+/gu, "-").slice(0, 40) || "conversation"}.json`, JSON.stringify(conversation, null, 1));
  const close = () => setDialog(null);
  const numNodes = Object.keys(conversation.nodes).length;
  return html`<div class="chat">
    <aside class=${drawer ? "drawer open" : "drawer"}><${Kept} onChoose=${() => setDrawer(false)} /></aside>
    ${drawer && html`<div class="veil" onClick=${() => setDrawer(false)}></div>`}
    <section class="talk" aria-label="Conversation">
      ${path.length > 0 && html`<div class="talk-bar">
        <h2>${conversation.title || "New conversation"}</h2>
        <${IconButton} icon="tree" label="Branches" disabled=${numNodes === path.length} onClick=${() => setDialog("branches")} />
        <${IconButton} icon="down" label="Export this conversation" onClick=${exportOne} />
      </div>`}
      <div class="messages" ref=${box} tabindex="0" role="log" aria-live="off" aria-label="Messages">
        <div class="column">
          ${path.length > 0 && system && html`<p class="system"><b>System</b> <${Long} text=${system} most=${LONGEST_SYSTEM} /></p>`}
          ${earlier > 0 && html`<p class="center"><button type="button" class="quiet" onClick=${() => setWhole(conversation.id)}>Show ${plural(earlier, "earlier message")}</button></p>`}
          ${path.slice(earlier).map((node) => html`<${Message} key=${node.id} node=${node} version=${node.version} busy=${isRunning(node)} tokens=${tokens} open=${openOf(node)} siblings=${counts.get(node.parent)} />`)}
          ${!path.length && html`<${Empty} known=${known} />`}
        </div>
      </div>
      ${problem && html`<p class="banner error" role="alert">${problem}</p>`}
      <div class="column"><${Composer} running=${busyNode !== undefined} onOptions=${() => setDialog("options")} /></div>
    </section>
    ${dialog === "options" && html`<${OptionsDialog} onClose=${close} />`}
    ${dialog === "branches" && html`<${BranchTree} onClose=${close} />`}
  </div>`;
}
