// The page: its views, the key, light and dark.
import { html, render, useState, useEffect, useLayoutEffect, useRef, useStore, Dialog, Fence, IconButton, inBrowser } from "./lib.js";
import { getKey, keyNeeded, loadServer, modelOf, server, setKey } from "./api.js";
import { Chat } from "./chat/chat.js";
import { Constraints } from "./constraints/constraints.js";
import { Programs } from "./programs/programs.js";
import { Machine } from "./machine/machine.js";
import { begin, comeBack, keepAtOnce } from "./chat/conversations.js";

const VIEWS = [
  ["chat", "Chat", Chat],
  ["constraints", "Constraints", Constraints],
  ["programs", "Programs", Programs],
  ["machine", "Machine", Machine],
];

const THEMES = ["system", "light", "dark"];

function useTheme() {
  const kept = inBrowser.get("sglang.theme");
  const [theme, setTheme] = useState(THEMES.includes(kept) ? kept : "system");
  const next = () => {
    const chosen = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    inBrowser.put("sglang.theme", chosen === "system" ? null : chosen);
    dispatchEvent(new CustomEvent("sglang-theme", { detail: chosen }));  // theme.js applies it
    setTheme(chosen);
  };
  return [theme, next];
}

const WHY_KEY = {
  any: "This server wants an API key.",
  admin: "This view shows what concerns all clients: it needs the server's admin key.",
  null: "The key is sent with every request.",
};

function KeyDialog({ onClose, needed }) {
  const [key, set] = useState(getKey());
  const [problem, setProblem] = useState(null);
  const save = async (event) => {
    event.preventDefault();
    if (/[^\x21-\x7e]/.test(key.trim())) {
      setProblem("A key has letters, digits and signs of ASCII alone, and no spaces.");
      return;
    }
    await setKey(key.trim());
    const { error, status } = server.value;
    if (error) setProblem(status === 401 ? "The server does not accept this key." : error);
    else onClose();
  };
  return html`<${Dialog} title="API key" onClose=${onClose}>
    <form onSubmit=${save}>
      <p>${WHY_KEY[needed]} It is kept until this tab is closed.</p>
      <label class="field">Key <input type="password" autocomplete="off" autofocus value=${key} onInput=${(event) => set(event.target.value)} /></label>
      ${problem && html`<p class="error" role="alert">${problem}</p>`}
      <footer><button class="primary">Use the key</button></footer>
    </form>
  <//>`;
}

const viewOf = () => VIEWS.find(([name]) => location.hash === `#${name}`) ?? VIEWS[0];

function App() {
  const [view, setView] = useState(viewOf);
  const [drawer, setDrawer] = useState(false);
  const [asking, setAsking] = useState(false);
  const [theme, nextTheme] = useTheme();
  const known = useStore(server);
  const needed = useStore(keyNeeded);
  useLayoutEffect(() => {
    const onHash = () => {
      setView(viewOf());
      setDrawer(false);
    };
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);
  const [name, title, View] = view;
  useEffect(() => {
    document.title = name === "chat" ? "sglang" : `${title} – sglang`;
  }, [name]);
  const links = useRef(null);
  useEffect(() => links.current.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" }), [name]);
  return html`
    <header class="top">
      ${name === "chat" && html`<${IconButton} icon="menu" label="Conversations" aria-expanded=${String(drawer)} class="icon-button menu" onClick=${() => setDrawer(!drawer)} />`}
      <h1>sglang</h1>
      <nav aria-label="Views" ref=${links}>${VIEWS.map(([id, title]) => html`<a href=${`#${id}`} aria-current=${id === name ? "page" : undefined}>${title}</a>`)}<a href="docs" class="outside">Docs</a></nav>
      <span class="space"></span>
      <span class="model" title="the model that answers">${modelOf(known) ?? ""}</span>
      <${IconButton} icon="key" label="API key" onClick=${() => setAsking(true)} />
      <${IconButton} icon="theme" label=${`Colours: ${theme}`} onClick=${nextTheme} />
    </header>
    ${known?.error && !needed && html`<p class="banner error" role="alert">${known.error} <button type="button" onClick=${loadServer}>Try again</button></p>`}
    <main><${Fence} key=${name}><${View} drawer=${drawer} setDrawer=${setDrawer} /><//></main>
    <p id="announcer" class="hidden-text" aria-live="polite"></p>
    ${(asking || needed) && html`<${KeyDialog} needed=${needed} onClose=${() => {
      setAsking(false);
      keyNeeded.set(null);
    }} />`}
  `;
}

addEventListener("pagehide", keepAtOnce);
addEventListener("pageshow", (event) => event.persisted && comeBack());
begin();
loadServer();
const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);
