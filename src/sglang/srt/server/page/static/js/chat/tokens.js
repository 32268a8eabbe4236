// An answer token by token: how likely each was, what else it could have been, and where it came from.
import { html, useState, useLayoutEffect, useRef, Component } from "../lib.js";

/** Tokens of a piece: at least, so that it ends with a line, and at most. A piece is drawn and laid out by itself. */
const PIECE = 150;
const LONGEST_PIECE = 600;
const ORIGINS = {
  sampled: "sampled",
  draft: "accepted from a draft",
  forced: "forced by the grammar",
};

const probability = (logprob) => (logprob === null || logprob === undefined ? null : Math.exp(logprob));
const percent = (p) => (p === null ? "–" : p >= 0.9995 ? "100 %" : p < 0.001 ? "< 0.1 %" : `${(p * 100).toFixed(1)} %`);

/** 0: as good as certain ... 4: a surprise */
function level(p) {
  if (p === null) return 0;
  return p > 0.9 ? 0 : p > 0.6 ? 1 : p > 0.3 ? 2 : p > 0.1 ? 3 : 4;
}

const shown = (text) => text.replace(/\n/g, "⏎\n");
const isSpecial = (text) => /^<[|｜].*[|｜]>$|^<\/?s>$|^<(?:eos|bos|end_of_turn|start_of_turn)>$/.test(text);

/** The text of the tokens before `index`; null if that ends within a character. */
export function textBefore(tokens, index) {
  const bytes = [];
  const encoder = new TextEncoder();
  for (const token of tokens.slice(0, index)) {
    if (isSpecial(token.t)) continue;
    bytes.push(...(token.b ?? encoder.encode(token.t)));
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/** [from, count] of the pieces of an answer. */
function piecesOf(tokens) {
  const pieces = [];
  let from = 0;
  for (let end = 1; end <= tokens.length; end += 1) {
    const count = end - from;
    if (end < tokens.length && count < LONGEST_PIECE && (count < PIECE || !tokens[end - 1].t.endsWith("\n"))) continue;
    pieces.push([from, count]);
    from = end;
  }
  return pieces;
}

class Piece extends Component {
  shouldComponentUpdate(next) {
    return next.count !== this.props.count || next.view !== this.props.view || next.scored !== this.props.scored || next.from !== this.props.from || next.tokens !== this.props.tokens || next.picked !== this.props.picked;
  }

  render({ tokens, from, count, picked, view }) {
    const all = tokens.slice(from, from + count);
    return html`<span class="piece">${all.map((token, i) => {
      const p = view === "tokens" ? probability(token.p) : null;
      const names = ["token", `p${level(p)}`, token.o && `from-${token.o}`, token.chosen && "chosen", isSpecial(token.t) && "special", picked === from + i && "picked"];
      return html`<span class=${names.filter(Boolean).join(" ")} data-index=${from + i}>${shown(token.t)}</span>`;
    })}</span>`;
  }
}

function Alternatives({ token, at, onPick, onClose, place }) {
  const ref = useRef(null);
  useLayoutEffect(() => {
    const box = ref.current;
    const room = document.documentElement.clientWidth;
    box.style.left = `${Math.max(8, Math.min(place.left, room - box.offsetWidth - 8))}px`;
    const below = place.bottom + 6 + box.offsetHeight < innerHeight;
    box.style.top = `${below ? place.bottom + 6 : Math.max(8, place.top - box.offsetHeight - 6)}px`;
  }, [at]);
  const p = probability(token.p);
  const others = token.a ?? [];
  return html`<div class="alternatives" ref=${ref} role="dialog" aria-label=${`Token ${at + 1}: alternatives`} onKeyDown=${(event) => event.key === "Escape" && onClose(true)}>
    <p><code>${shown(token.t)}</code> ${percent(p)}${token.o && html`<span class="origin">${ORIGINS[token.o]}</span>`}</p>
    ${token.o === "forced" && html`<p class="hint">The grammar allowed nothing else.</p>`}
    <ul>${others.map((other) => {
      const q = probability(other.p);
      const same = other.t === token.t;
      const usable = !same && !other.b && !isSpecial(other.t);
      return html`<li><button type="button" disabled=${!usable} onClick=${() => onPick(other)}
        title=${same ? "the token of this answer" : usable ? "go on from here with this token" : "no text can go on from this token alone"}>
        <meter min="0" max="1" value=${q ?? 0} aria-hidden="true"></meter><code>${shown(other.t)}</code><span>${percent(q)}</span></button></li>`;
    })}</ul>
    ${!others.length && html`<p class="hint">Answer again with Tokens to see alternatives.</p>`}
  </div>`;
}

/** `onPick(index, alternative)`: go on from there. */
export function Tokens({ tokens, view, scored, busy, onPick }) {
  const [picked, setPicked] = useState(null);
  const box = useRef(null);
  const close = (back) => {
    setPicked(null);
    if (back) box.current?.focus();
  };
  useLayoutEffect(() => {
    if (picked === null) return undefined;
    const outside = (event) => !event.target.closest(".alternatives, .token") && setPicked(null);
    document.addEventListener("pointerdown", outside);
    return () => document.removeEventListener("pointerdown", outside);
  }, [picked]);
  const open = (index, element) => setPicked({ index, place: element.getBoundingClientRect() });
  const over = (event) => {
    const token = event.target.closest(".token");
    if (token && event.pointerType !== "touch" && !busy) open(Number(token.dataset.index), token);
  };
  const click = (event) => {
    const token = event.target.closest(".token");
    if (token && !busy) open(Number(token.dataset.index), token);
  };
  const move = (event) => {
    if (event.key === "Escape") close(true);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || busy || !tokens.length) return;
    event.preventDefault();
    const index = Math.min(Math.max((picked?.index ?? -1) + step, 0), tokens.length - 1);
    open(index, box.current.querySelector(`[data-index="${index}"]`));
  };
  const pieces = piecesOf(tokens).map(([from, count]) => {
    const isIn = picked && picked.index >= from && picked.index < from + count;
    return html`<${Piece} key=${from} view=${view} scored=${scored === undefined ? 0 : Math.min(scored, from + count)} tokens=${tokens} from=${from} count=${count} picked=${isIn ? picked.index : null} />`;
  });
  return html`<div class="tokens-box">
    <div class="tokens" ref=${box} tabindex="0" role="group" aria-label="Tokens of the answer; left and right arrow go through their alternatives" onPointerOver=${over} onClick=${click} onKeyDown=${move}>${pieces}</div>
    ${picked && tokens[picked.index] && html`<${Alternatives} token=${tokens[picked.index]} at=${picked.index} place=${picked.place} onClose=${close} onPick=${(other) => {
      setPicked(null);
      onPick(picked.index, other);
    }} />`}
  </div>`;
}

export const Legend = ({ view }) => html`<p class="legend" aria-label="Legend">
  ${view === "tokens" && html`<span class="token p0">over 90 %</span><span class="token p1">60 %</span><span class="token p2">30 %</span><span class="token p3">10 %</span><span class="token p4">below</span>`}
  <span class="token from-forced">forced by a grammar</span>${view === "origins" && html`<span class="token from-draft">accepted from a draft</span>`}<span class="token chosen">chosen by you</span>
</p>`;
