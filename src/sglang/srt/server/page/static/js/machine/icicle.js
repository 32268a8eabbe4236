// The prefix tree as an icicle: the root at the left, a level a column, the height of a node by the tokens below it. Nodes too thin to see
// are drawn as one, so that it does not matter how many there are.
import { html, useEffect, useRef, useState, em, short } from "../lib.js";
import { nodes } from "./live.js";

const THIN = 2.5;
const GLOW_MS = 1500;
const MAX_BOXES = 3000;

/** The tree as it is to be drawn: {id, node, children, weight, depth} from the roots on, and what was asked for by name. */
export function build(all) {
  const children = new Map();
  for (const node of all.values()) {
    const parent = all.has(node.parent) ? node.parent : `root ${node.parent}`;
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(node);
  }
  const weights = new Map();
  const order = [...children.keys()].filter((key) => typeof key === "string").flatMap((key) => children.get(key));
  for (let i = 0; i < order.length; i += 1) order.push(...(children.get(order[i].id) ?? []));
  for (const node of order.reverse()) {
    const below = (children.get(node.id) ?? []).reduce((sum, child) => sum + weights.get(child.id), 0);
    weights.set(node.id, node.length + below);
  }
  for (const list of children.values()) list.sort((a, b) => a.id - b.id);
  return { children, weights };
}

/** Boxes [{x, y, w, h, node, count}] for a drawing of this size. `top`: the node that is looked into, if it is not all. */
export function layout(all, width, height, top = null) {
  const { children, weights } = build(all);
  const boxes = [];
  const first = top !== null && all.has(top) ? [all.get(top)] : [...children.keys()].filter((key) => typeof key === "string").flatMap((key) => children.get(key));
  const longest = depthOf(first, children);
  const column = Math.max(width / Math.max(longest, 1), 56);
  let level = [{ list: first, y: 0, h: height, x: 0 }];
  while (level.length && boxes.length < MAX_BOXES) {
    const next = [];
    for (const { list, y, h, x } of level) {
      const total = list.reduce((sum, node) => sum + weights.get(node.id), 0) || 1;
      let at = y;
      let thin = null;
      for (const node of list) {
        const size = (h * weights.get(node.id)) / total;
        if (size < THIN) {
          thin ??= { x, y: at, w: column, h: 0, node: null, count: 0 };
          thin.h += size;
          thin.count += 1 + (children.get(node.id)?.length ?? 0);
        } else {
          if (thin) boxes.push(thin);
          thin = null;
          boxes.push({ x, y: at, w: column, h: size, node, count: 1 });
          const below = children.get(node.id);
          // of its height a node's own end takes its share, so that what is below is as tall as it weighs
          if (below) next.push({ list: below, y: at, h: size, x: x + column });
        }
        at += size;
      }
      if (thin) boxes.push(thin);
    }
    level = next;
  }
  return { boxes, width: column * Math.max(longest, 1) };
}

function depthOf(first, children) {
  let depth = 0;
  for (let level = first; level.length; level = level.flatMap((node) => children.get(node.id) ?? [])) depth += 1;
  return depth;
}

function color(style, node) {
  if (!node) return style.getPropertyValue("--idle");
  if (node.locked) return style.getPropertyValue("--c0");
  return style.getPropertyValue(node.hits ? "--c1" : "--idle");
}

function draw(canvas, picture, at) {
  const scale = devicePixelRatio || 1;
  const { width, height } = picture;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const now = performance.now();
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const unit = em();
  pen.textBaseline = "middle";
  let glows = false;
  for (const box of picture.boxes) {
    const { x, y, w, h, node } = box;
    pen.globalAlpha = node ? 0.85 : 0.45;
    pen.fillStyle = color(style, node);
    pen.fillRect(x + 1, y + 0.5, w - 2, Math.max(h - 1, 0.8));
    const age = node ? now - node.changed : GLOW_MS;
    if (age < GLOW_MS) {
      glows = true;
      pen.globalAlpha = 1 - age / GLOW_MS;
      pen.strokeStyle = style.getPropertyValue("--accent");
      pen.lineWidth = 2;
      pen.strokeRect(x + 2, y + 1.5, w - 4, Math.max(h - 3, 1));
    }
    if (box === at) {
      pen.globalAlpha = 1;
      pen.strokeStyle = style.getPropertyValue("--text");
      pen.lineWidth = 1.5;
      pen.strokeRect(x + 1.5, y + 1, w - 3, Math.max(h - 2, 1));
    }
    if (node && h >= 0.62 * unit && w > 2.5 * unit) {
      pen.font = `${h < unit ? 0.62 * unit : 0.75 * unit}px ${style.getPropertyValue("--mono")}`;
      pen.globalAlpha = 1;
      pen.fillStyle = style.getPropertyValue(node.locked || node.hits ? "--surface" : "--text");
      pen.save();
      pen.beginPath();
      pen.rect(x + 4, y, w - 8, h);
      pen.clip();
      pen.fillText(node.text.replace(/\s+/g, " "), x + 7, y + Math.min(h / 2, 1.4 * unit));
      pen.restore();
    }
  }
  pen.globalAlpha = 1;
  return glows;
}

/** `version` changes whenever there is something new to draw. */
export function Icicle({ version, bytesPerToken }) {
  const box = useRef(null);
  const canvas = useRef(null);
  const picture = useRef({ boxes: [], width: 0, height: 0 });
  const [top, setTop] = useState(null);
  const [pointed, setPointed] = useState(null);
  const again = useRef(0);
  const paint = () => {
    again.current = 0;
    const height = Math.max(box.current.clientHeight, 120);
    picture.current = { ...layout(nodes, box.current.clientWidth, height, top), height };
    const at = pointed === null ? null : picture.current.boxes.find((found) => found.node?.id === pointed);
    if (draw(canvas.current, picture.current, at)) request();
  };
  const request = () => {
    again.current ||= setTimeout(() => requestAnimationFrame(() => box.current && paint()), 60);
  };
  useEffect(request, [version, top, pointed]);
  useEffect(() => {
    const watch = new ResizeObserver(request);
    watch.observe(box.current);
    return () => {
      watch.disconnect();
      clearTimeout(again.current);
      again.current = 1;
    };
  }, []);
  const under = (event) => {
    const place = canvas.current.getBoundingClientRect();
    const x = event.clientX - place.left;
    const y = event.clientY - place.top;
    return picture.current.boxes.find((b) => x >= b.x && x < b.x + b.w && y >= b.y && y < b.y + b.h) ?? null;
  };
  const keys = (event) => {
    const at = nodes.get(pointed);
    const list = [...nodes.values()];
    const siblings = at ? list.filter((node) => node.parent === at.parent).sort((a, b) => a.id - b.id) : [];
    const index = siblings.findIndex((node) => node.id === pointed);
    const goals = {
      ArrowRight: () => list.find((node) => node.parent === pointed),
      ArrowLeft: () => nodes.get(at?.parent),
      ArrowDown: () => (at ? siblings[index + 1] : list.find((node) => !nodes.has(node.parent))),
      ArrowUp: () => siblings[index - 1],
    };
    if (event.key === "Enter") setTop(pointed);
    else if (event.key === "Escape") setTop(null);
    else if (goals[event.key]) setPointed(goals[event.key]()?.id ?? pointed);
    else return;
    event.preventDefault();
  };
  const node = nodes.get(pointed);
  return html`<figure class="icicle">
    <div class="icicle-box" ref=${box} tabindex="0" role="application" aria-label="Prefix tree. Arrow keys go through it, Enter looks into a node, Escape shows all." onKeyDown=${keys}>
      <canvas ref=${canvas} role="img" aria-label=${`${nodes.size} nodes`} onPointerMove=${(event) => setPointed(under(event)?.node?.id ?? null)} onPointerLeave=${() => setPointed(null)} onClick=${(event) => setTop(under(event)?.node?.id ?? null)}></canvas>
    </div>
    <figcaption aria-live="polite">
      ${node
        ? html`<b>${short(node.length)} tokens</b> from position ${node.start}${bytesPerToken ? `, ${bytes(node.length * bytesPerToken)}` : ""}, ${node.locked ? "locked by a running request" : "free to be evicted"}, found by ${node.hits} later ${node.hits === 1 ? "request" : "requests"} <code>${node.text}</code>`
        : html`<span class="key c0">locked</span><span class="key c1">reused</span><span class="key idle">kept</span> ${top !== null && html`<button type="button" class="quiet" onClick=${() => setTop(null)}>Show all</button>`}`}
    </figcaption>
  </figure>`;
}

export const bytes = (count) => (count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(2)} GiB` : count >= 2 ** 20 ? `${(count / 2 ** 20).toFixed(1)} MiB` : `${Math.max(count / 1024, 0).toFixed(0)} KiB`);
