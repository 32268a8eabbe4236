// What every view uses: preact, stores, icons, numbers.
import { html, render, Component, useState, useEffect, useLayoutEffect, useRef, useMemo, useCallback } from "../vendor/preact-htm.js";

export { html, render, Component, useState, useEffect, useLayoutEffect, useRef, useMemo, useCallback };

/** A value that views follow. Bursts of changes are told once a frame. */
export class Store {
  constructor(value) {
    this.value = value;
    this.followers = new Set();
    this.frame = 0;
  }

  set(value) {
    this.value = value;
    this.tell();
  }

  /** Changes some members of a value that is an object. */
  put(changes) {
    this.set({ ...this.value, ...changes });
  }

  tell() {
    if (this.frame) return;
    const run = () => {
      clearTimeout(this.late);
      cancelAnimationFrame(this.frame);
      this.frame = 0;
      for (const follower of [...this.followers]) follower();
    };
    this.frame = requestAnimationFrame(run);
    this.late = setTimeout(run, 250); // a page in the background has no frames
  }

  follow(follower) {
    this.followers.add(follower);
    return () => this.followers.delete(follower);
  }
}

export function useStore(store) {
  const [, again] = useState(0);
  useLayoutEffect(() => store.follow(() => again((n) => n + 1)), [store]); // no change in between is missed
  return store.value;
}

/** localStorage or sessionStorage; where the browser gives none to pages, what is put there lasts until the page is left. */
export class Keeper {
  constructor(kind) {
    this.kind = kind;
    this.own = new Map();
  }

  get(name) {
    try {
      return globalThis[this.kind].getItem(name);
    } catch {
      return this.own.get(name) ?? null;
    }
  }

  /** null takes it away. */
  put(name, text) {
    this.own.set(name, text);
    try {
      if (text === null) globalThis[this.kind].removeItem(name);
      else globalThis[this.kind].setItem(name, text);
    } catch {
      // there is no storage, or it is full
    }
  }
}

export const inBrowser = new Keeper("localStorage");
export const inTab = new Keeper("sessionStorage");

/** A value that stays in this browser, or in this tab. Other programs at this address may have kept something else by its name: `sound` makes of it what
 * this page could have kept. */
export class KeptStore extends Store {
  constructor(name, sound, keeper = inBrowser) {
    let kept = null;
    try {
      kept = parseJson(keeper.get(name) ?? "null");
    } catch {
      // what is not JSON was not written by us
    }
    super(sound(kept));
    this.name = name;
    this.keeper = keeper;
  }

  set(value) {
    super.set(value);
    this.keeper.put(this.name, JSON.stringify(value));
  }
}

const PATHS = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12l5 5 9-10",
  redo: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  code: "M9 8l-4 4 4 4M15 8l4 4-4 4",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  left: "M14 7l-5 5 5 5",
  right: "M10 7l5 5-5 5",
  image: "M4 6h16v12H4zM4 16l5-5 4 4 3-3 4 4M15 9.5v.01",
  camera: "M4 8h4l2-2h4l2 2h4v10H4zM12 10a3 3 0 1 1 0 6 3 3 0 0 1 0-6",
  file: "M7 4h7l4 4v12H7zM14 4v4h4",
  sliders: "M5 8h8M17 8h2M5 16h2M11 16h8M15 6v4M9 14v4",
  tree: "M6 5v14M6 8h6a4 4 0 0 1 4 4v0M6 5a1 1 0 1 0 0-.1M6 19v.1M16 14v1",
  theme: "M12 4a8 8 0 1 0 0 16V4z",
  key: "M14 10a4 4 0 1 1-4-4 4 4 0 0 1 4 4zM13 12l6 6M17 16l2-2",
  down: "M12 5v12M6 12l6 6 6-6",
  up: "M12 19V7M6 12l6-6 6 6",
  more: "M6 12v.01M12 12v.01M18 12v.01",
  tokens: "M4 7h5v4H4zM11 7h9v4h-9zM4 14h9v4H4zM15 14h5v4h-5z",
};

export const Icon = ({ name }) => html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** A button that shows an icon; `label` is what it is called. */
export function IconButton({ icon, label, onClick, pressed, disabled, ...rest }) {
  return html`<button
    type="button"
    class="icon-button"
    aria-label=${label}
    title=${label}
    aria-pressed=${pressed === undefined ? undefined : String(pressed)}
    disabled=${disabled}
    onClick=${onClick}
    ...${rest}
  ><${Icon} name=${icon} /></button>`;
}

export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // a page by plain http has no clipboard of its own
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function CopyButton({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await copyText(typeof text === "function" ? text() : text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<${IconButton} icon=${done ? "check" : "copy"} label=${done ? "Copied" : label} onClick=${copy} />`;
}

const announcer = () => document.getElementById("announcer");

/** Tells screen readers. */
export function announce(text) {
  const node = announcer();
  if (node) node.textContent = text;
}

/** A modal dialog. It closes with Escape, and gives the focus back. */
export function Dialog({ title, onClose, children, wide }) {
  const ref = useRef(null);
  useLayoutEffect(() => {
    // before anything else runs: Escape closes it as soon as it is there
    const [before, dialog] = [document.activeElement, ref.current];
    dialog.showModal();
    return () => {
      dialog.close(); // while it is open, nothing else takes the focus
      before?.focus?.();
    };
  }, []);
  return html`<dialog
    ref=${ref}
    class=${wide ? "wide" : ""}
    aria-label=${title}
    onCancel=${(event) => {
      event.preventDefault();
      onClose();
    }}
    onClick=${(event) => event.target === ref.current && onClose()}
  >
    <div class="dialog-box">
      <header><h2>${title}</h2><${IconButton} icon="close" label="Close" onClick=${onClose} /></header>
      ${children}
    </div>
  </dialog>`;
}

/** Asks before something is lost. `name`: what the button that does it is called. */
export function Question({ title, children, name, onYes, onClose }) {
  return html`<${Dialog} title=${title} onClose=${onClose}>
    ${children}
    <footer><button type="button" onClick=${onClose}>Cancel</button><button type="button" class="primary" onClick=${() => {
      onClose();
      onYes();
    }}>${name}</button></footer>
  <//>`;
}

export const short = (number) =>
  number >= 1e9 ? `${(number / 1e9).toFixed(1)}G` : number >= 1e6 ? `${(number / 1e6).toFixed(1)}M` : number >= 1e4 ? `${(number / 1e3).toFixed(1)}k` : String(Math.round(number));

export const seconds = (value) => (value < 0.01 ? `${(value * 1000).toFixed(1)} ms` : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`);

/** The size of letters in pixels, for drawings that are to grow with them. */
export const em = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export const newId = () => crypto.getRandomValues(new Uint32Array(3)).reduce((text, n) => text + n.toString(36), "");

const MAX_DEPTH = 100;

/** JSON of any origin. Throws an Error for what nests deeper than anything that people write: to print or to walk that costs too much. */
export function parseJson(text) {
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i += 1) {
    const c = text.charCodeAt(i);
    if (inString) {
      if (c === 92) i += 1; // a backslash, and what it is for
      else if (c === 34) inString = false;
    } else if (c === 34) inString = true;
    else if (c === 91 || c === 123) {
      depth += 1;
      if (depth > MAX_DEPTH) throw new Error(`it is nested more than ${MAX_DEPTH} levels deep`);
    } else if (c === 93 || c === 125) depth -= 1;
  }
  return JSON.parse(text);
}

/** Text of any origin, on its way to a place where control characters could act: a terminal into which it is pasted. */
export const withoutControls = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "");

const MAX_FILE = 256 << 20;

/** The text of a file that the user has chosen. */
export async function readFile(file) {
  if (file.size > MAX_FILE) throw new Error(`it has ${Math.round(file.size / 2 ** 20)} MiB; ${MAX_FILE >> 20} at most can be read`);
  return file.text();
}

/** What is drawn in place of a view that has failed. */
export class Fence extends Component {
  componentDidCatch(error) {
    this.setState({ error });
  }

  render({ children }, { error }) {
    if (!error) return children;
    return html`<div class="view"><p class="error" role="alert">This view has failed: ${String(error?.message ?? error).slice(0, 500)}</p>
      <button type="button" onClick=${() => this.setState({ error: null })}>Try again</button></div>`;
  }
}

/** Offers a text as a file. */
export function download(name, text, type = "application/json") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
