// The page: its views, the key, light and dark.
import { html, render, useState, useEffect, useRef, useStore, Dialog, IconButton } from "./lib.js";
import { getKey, keyNeeded, loadServer, server, setKey } from "./api.js";
import { Chat } from "./chat/chat.js";
import { Constraints } from "./constraints/constraints.js";
import { Programs } from "./programs/programs.js";
import { Machine } from "./machine/machine.js";
import { modelOf, options } from "./chat/options.js";
import { loadAll, keepAtOnce } from "./chat/conversations.js";

const VIEWS = [
  ["chat", "Chat", Chat],
  ["constraints", "Constraints", Constraints],
  ["programs", "Programs", Programs],
  ["machine", "Machine", Machine],
];

const THEMES = ["system", "light", "dark"];

function useTheme() {
  const [theme, setTheme] = useState(localStorage.getItem("sglang.theme") ?? "system");
  const next = () => {
    const chosen = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    if (chosen === "system") localStorage.removeItem("sglang.theme");
    else localStorage.setItem("sglang.theme", chosen);
    dispatchEvent(new Event("sglang-theme"));  // theme.js applies it
    setTheme(chosen);
  };
  return [theme, next];
}

function KeyDialog({ onClose, needed }) {
  const [key, set] = useState(getKey());
  const [problem, setProblem] = useState(null);
  const save = async (event) => {
    event.preventDefault();
    await setKey(key.trim());
    if (server.value.error) setProblem(server.value.error);
    else onClose();
  };
  return html`<${Dialog} title="API key" onClose=${onClose}>
    <form onSubmit=${save}>
      <p>${needed ? "This server wants an API key." : "The key is sent with every request."} It is kept until this tab is closed.</p>
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
  const set = useStore(options);
  useEffect(() => {
    const onHash = () => {
      setView(viewOf());
      setDrawer(false);
    };
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);
  const [name, , View] = view;
  const links = useRef(null);
  useEffect(() => links.current.querySelector("[aria-current]").scrollIntoView({ block: "nearest", inline: "center" }), [name]);
  return html`
    <header class="top">
      ${name === "chat" && html`<${IconButton} icon="menu" label="Conversations" aria-expanded=${String(drawer)} class="icon-button menu" onClick=${() => setDrawer(!drawer)} />`}
      <h1>sglang</h1>
      <nav aria-label="Views" ref=${links}>${VIEWS.map(([id, title]) => html`<a href=${`#${id}`} aria-current=${id === name ? "page" : undefined}>${title}</a>`)}<a href="docs" class="outside">Docs</a></nav>
      <span class="space"></span>
      <span class="model" title="the model that answers">${modelOf(known, set) ?? ""}</span>
      <${IconButton} icon="key" label="API key" onClick=${() => setAsking(true)} />
      <${IconButton} icon="theme" label=${`Colours: ${theme}`} onClick=${nextTheme} />
    </header>
    ${known?.error && !needed && html`<p class="banner error" role="alert">${known.error} <button type="button" onClick=${loadServer}>Try again</button></p>`}
    <main><${View} drawer=${drawer} setDrawer=${setDrawer} /></main>
    <p id="announcer" class="hidden-text" aria-live="polite"></p>
    ${(asking || needed) && html`<${KeyDialog} needed=${needed} onClose=${() => {
      setAsking(false);
      keyNeeded.set(false);
    }} />`}
  `;
}

addEventListener("pagehide", keepAtOnce);
loadAll();
loadServer();
const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} />`, root);
