// A text of a model as markup, drawn so that the page stays responsive whatever the text is.
import { html, useEffect, useLayoutEffect, useRef, useState, copyText, withoutControls } from "../lib.js";
import { Growing } from "./blocks.js";

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

/** Time for reading until the next frame, in ms: what does not fit waits for that. */
const FRAME_MS = 30;
let left = FRAME_MS;
const waiting = new Set();
let late = 0;

/** A page in the background has no frames. */
function nextFrame(work) {
  waiting.add(work);
  if (late) return;
  late = setTimeout(run, 250);
  const frame = requestAnimationFrame(run);
  function run() {
    clearTimeout(late);
    cancelAnimationFrame(frame);
    late = 0;
    left = FRAME_MS;
    const all = [...waiting];
    waiting.clear();
    for (const one of all) one();
  }
}

const refill = () => {};

/** `busy`: the text grows. Drawing it then takes one part in REST of the time at most. A long text is drawn a piece a frame; what waits for
 * its turn is shown as it was written. */
export function Markdown({ text, busy = false }) {
  const box = useRef(null);
  const growing = useRef(null);
  const shown = useRef({ text: null, tail: "", isMore: true, until: 0 });
  const timer = useRef(0);
  const [, again] = useState(0);
  const redraw = useRef(() => again((n) => n + 1)).current;
  const began = performance.now();
  const { until, isMore } = shown.current;
  growing.current ??= new Growing();
  const isNews = shown.current.text !== text || isMore;
  if (isNews && left > 0 && (!busy || began >= until)) {
    shown.current = { text, until: 0, ...growing.current.feed(text.slice(0, MOST)) };
    left -= performance.now() - began;
    nextFrame(refill);
  }
  useLayoutEffect(() => {
    clearTimeout(timer.current);
    if (!shown.current.until && (busy || shown.current.isMore)) {
      shown.current.until = untilLaidOut(box.current, began);
      left -= performance.now() - began;
    }
    if (shown.current.text === text && !shown.current.isMore) return;
    const wait = busy ? shown.current.until - performance.now() : 0;
    if (wait > 0) timer.current = setTimeout(redraw, wait);
    else nextFrame(redraw);
  });
  useEffect(() => () => {
    clearTimeout(timer.current);
    waiting.delete(redraw);
  }, []);
  const { blocks, goesOn } = growing.current;
  const isUnread = shown.current.text === null;
  return html`<div class="markdown" ref=${box} onClick=${onClick}>
    ${blocks.map((markup, i) => html`<div class=${goesOn.has(i) ? "block goes-on" : "block"} key=${i} dangerouslySetInnerHTML=${{ __html: markup }} />`)}
    ${isUnread ? html`<div class="block unread" key="unread">${text.slice(0, NUM_UNREAD)}</div>` : html`<div class="block" key="tail" dangerouslySetInnerHTML=${{ __html: shown.current.tail }} />`}
    ${rest(text)}
  </div>`;
}

const NUM_UNREAD = 1000;
