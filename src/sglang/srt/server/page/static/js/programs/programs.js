// Programs: their runs as they happen, or from recordings: branches as lanes on a line of time, forks, and what each request read and said.
import { html, useEffect, useMemo, useRef, useState, useStore, em, seconds, plural, readFile, CopyButton, IconButton } from "../lib.js";
import { server } from "../api.js";
import { languageHead } from "../code_forms.js";
import { CodeDialog } from "../request_code.js";
import { live, look, nowFor, placeOf, requestOf, runNews, runs, UNSEEN } from "../machine/live.js";
import { readRecording, recordedRequest } from "./recording.js";

const MAX_LANES = 200;

const numbers = (branch) => branch.split(".").map(Number);

function inOrder(a, b) {
  const [x, y] = [numbers(a), numbers(b)];
  for (let i = 0; i < Math.max(x.length, y.length); i += 1) if ((x[i] ?? -1) !== (y[i] ?? -1)) return (x[i] ?? -1) - (y[i] ?? -1);
  return 0;
}

/** Every branch that made a request, and those above it: MAX_LANES of them. */
function branchesOf(calls) {
  const all = new Set(["0"]);
  for (const { branch } of calls) {
    const line = [];
    for (let at = branch; at.includes("."); at = at.slice(0, at.lastIndexOf("."))) line.push(at);
    if (all.size + line.length <= MAX_LANES) for (const at of line) all.add(at);
  }
  return [...all].sort(inOrder);
}

/** Seconds from the beginning that are marked, `most` at most besides the beginning. */
function ticks(span, most) {
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600].find((one) => span / one <= most) ?? span / most;
  const found = [];
  for (let at = 0; at <= span + step / 1000; at += step) found.push(at);
  return found;
}

const isPrefix = (call) => call.max_new_tokens === 0 && !call.choices;
const kindOf = (call) => (!call.ended ? "running" : call.reason === "abort" ? "aborted" : isPrefix(call) ? "prefix" : call.constraint || call.choices ? "constrained" : "free");

/** What a lane is called: of a deep branch the last numbers, as many as there is room for. */
const laneName = (branch) => (branch === "0" ? "program" : branch.length < 9 ? `fork ${branch.slice(2)}` : `fork …${branch.slice(-6).replace(/^\d*\./, "")}`);

/** The line of time: a lane for each branch, a bar for each request, curves from a fork's lane to its children's. */
export function TimeLine({ run, picked, onPick, width }) {
  const every = [...run.calls.values()];
  const branches = branchesOf(every);
  const shown = new Set(branches);
  const calls = every.filter((call) => shown.has(call.branch));
  const began = Math.min(...calls.map((call) => call.at));
  const now = Math.max(...calls.map((call) => call.ended ?? nowFor(call)));
  const span = Math.max(now - began, 0.001);
  const unit = em();
  const [LANE, LEFT, TOP] = [1.9 * unit, 6.9 * unit, 1.7 * unit];
  const lanes = new Map(branches.map((branch, i) => [branch, TOP + i * LANE]));
  const room = Math.max(width - LEFT - 16, 100);
  const x = (at) => LEFT + ((at - began) / span) * room;
  const height = TOP + branches.length * LANE + 8;
  const first = (branch) => Math.min(...calls.filter((call) => call.branch === branch || call.branch.startsWith(`${branch}.`)).map((call) => call.at));
  return html`<svg class="time-line" width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} role="group" aria-label="Line of time">
    ${ticks(span, Math.min(Math.max(Math.floor(room / (4.5 * unit)), 1), 8)).map((at) => html`<g class="tick"><line x1=${x(began + at)} x2=${x(began + at)} y1=${TOP - 4} y2=${height} /><text x=${x(began + at)} y=${0.9 * unit} text-anchor=${at > span * 0.94 ? "end" : "middle"}>${seconds(at)}</text></g>`)}
    ${branches.map((branch) => html`<g class="lane"><text x=${0.5 * unit} y=${lanes.get(branch) + LANE / 2 + 0.26 * unit}><title>branch ${branch}</title>${laneName(branch)}</text><line x1=${LEFT} x2=${width - 16} y1=${lanes.get(branch) + LANE / 2} y2=${lanes.get(branch) + LANE / 2} /></g>`)}
    ${branches.filter((branch) => branch !== "0").map((branch) => {
      const parent = branch.slice(0, branch.lastIndexOf("."));
      const at = x(first(branch));
      const [from, to] = [lanes.get(parent) + LANE / 2, lanes.get(branch) + LANE / 2];
      return html`<g class="fork"><path d=${`M ${at - 10} ${from} C ${at - 2} ${from} ${at - 10} ${to} ${at} ${to}`} /><circle cx=${at - 10} cy=${from} r="3" /></g>`;
    })}
    ${calls.map((call) => {
      const [from, to] = [x(call.at), x(call.ended ?? now)];
      const wide = Math.max(to - from, 3);
      const label = `${call.name || (isPrefix(call) ? "prefix" : call.choices ? "select" : "request")}, ${seconds((call.ended ?? now) - call.at)}`;
      return html`<g class=${`call ${kindOf(call)}${picked === call.rid ? " on" : ""}`} tabindex="0" role="button" aria-pressed=${String(picked === call.rid)} aria-label=${`branch ${call.branch}: ${label}`} onClick=${() => onPick(call.rid)} onKeyDown=${(event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), onPick(call.rid))}>
        <title>${label}</title><rect x=${from} y=${lanes.get(call.branch) + 4} width=${wide} height=${LANE - 8} rx="4" />
        ${wide > 0.5 * unit * label.length && html`<text x=${from + 6} y=${lanes.get(call.branch) + LANE / 2 + 0.26 * unit}>${label}</text>`}
      </g>`;
    })}
  </svg>
  ${calls.length < every.length && html`<p class="hint">${plural(every.length - calls.length, "request")} of more branches are not shown.</p>`}`;
}

/** A prompt in pieces: what the program wrote, and what the model said before in this branch or above it. */
export function spansOf(call, calls) {
  const above = calls.filter((other) => other.ended && other.text && other.at < call.at && (call.branch === other.branch || call.branch.startsWith(`${other.branch}.`)));
  const spans = [];
  let at = 0;
  for (const other of above.sort((a, b) => a.at - b.at)) {
    const said = other.text.trim();
    const found = said ? call.prompt.indexOf(said, at) : -1;
    if (found < 0) continue;
    if (found > at) spans.push({ text: call.prompt.slice(at, found), from: "program" });
    spans.push({ text: said, from: "model", name: other.name });
    at = found + said.length;
  }
  if (at < call.prompt.length) spans.push({ text: call.prompt.slice(at), from: "program" });
  return spans;
}

function Call({ run, call, calls }) {
  const [code, setCode] = useState(false);
  const figures = [
    call.prompt_len !== null && `prompt ${plural(call.prompt_len, "token")}`,
    call.cached !== undefined && call.cached !== null && `${call.cached} cached`,
    call.completion !== undefined && call.completion !== null && !call.choices && `${plural(call.completion, "token")} written`,
    call.constraint && (call.constraint === true ? "constrained" : `constrained by ${call.constraint}`),
    call.choices && `${plural(call.choices.length, "choice")} scored`,
    call.reason === UNSEEN ? "its end was not seen" : call.reason && !call.choices && `ended by ${call.reason}`,
  ];
  return html`<section class="call-text" aria-label="Request">
    <div class="row"><h3>${call.name || "Request"} <span class="hint">branch ${call.branch}</span></h3><span class="space"></span>
      <${IconButton} icon="code" label="The request as code" onClick=${() => setCode(true)} /></div>
    ${code && html`<${CodeDialog} request=${() => (call.recorded ? recordedRequest(run, call) : requestOf(run, call))} onClose=${() => setCode(false)} />`}
    <p class="stats">${figures.filter(Boolean).map((part) => html`<span>${part}</span>`)}</p>
    <pre tabindex="0">${spansOf(call, calls).map((span) => html`<span class=${`span-${span.from}`} title=${span.from === "model" ? `written by the model before${span.name ? `: ${span.name}` : ""}` : undefined}>${span.text}</span>`)}<span class=${call.choices ? "span-choice" : "span-now"}>${call.text ?? ""}</span></pre>
    ${call.choices && html`<ul class="scored">${call.choices.map(([choice, score]) => html`<li class=${choice === call.text ? "on" : ""}><code>${choice}</code> ${score === null ? "" : score.toFixed(3)}</li>`)}</ul>`}
    ${call.unconditional && html`<p class="hint">The program compares these with the scores that the choices have without the prompt.</p>`}
    <p class="hint"><span class="key c-program">program</span> <span class="key c1">model, before</span> <span class="key c0">this answer</span></p>
  </section>`;
}

const example = () => `${languageHead()}

@sgl.function
def tips(s):
    s += sgl.user("Name three hobbies.")
    s += sgl.assistant(sgl.gen("hobbies", max_tokens=40))
    forks = s.fork(3)
    for i, fork in enumerate(forks):
        fork += sgl.user(f"Give one tip about number {i + 1}.")
        fork += sgl.assistant(sgl.gen("tip", max_tokens=40))
    forks.join()
    s += sgl.user("Is that good advice?")
    s += sgl.assistant(sgl.select("verdict", choices=["yes", "no"]))


print(tips.run(temperature=0)["verdict"])
`;

function Empty() {
  const text = example();
  return html`<div class="empty-programs">
    <p>Run a program against this server while this view is open, or open a recording. For example:</p>
    <div class="code"><div class="code-bar"><span>python</span><${CopyButton} text=${text} label="Copy the program" /></div><pre tabindex="0"><code>${text}</code></pre></div>
    <p class="hint">With SGLANG_TRACE=server in its environment, a program shows the names of its variables, too.</p>
  </div>`;
}

export function Programs() {
  const state = useStore(live);
  const known = useStore(server);
  const news = useStore(runNews);
  const [recorded, setRecorded] = useState([]);
  const [chosen, setChosen] = useState(null);
  const [picked, setPicked] = useState(null);
  const [problem, setProblem] = useState(null);
  const [width, setWidth] = useState(900);
  const [, tick] = useState(0);
  const box = useRef(null);
  const picker = useRef(null);
  useEffect(() => look(known), [placeOf(known)]);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const all = useMemo(() => [...recorded, ...[...runs.values()].reverse()], [recorded, news]);
  const run = all.find((one) => one.id === chosen) ?? all[0];
  const calls = run ? [...run.calls.values()] : [];
  const isRunning = calls.some((call) => !call.ended);
  useEffect(() => {
    if (!isRunning) return undefined;
    const timer = setInterval(() => tick((n) => n + 1), 150);
    return () => clearInterval(timer);
  }, [isRunning]);
  const open = async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    try {
      const found = readRecording(await readFile(file)).map((one) => ({ ...one, id: `${file.name} ${one.id}`, title: one.title || file.name }));
      setRecorded(found);
      setChosen(found[0].id);
      setPicked(null);
      setProblem(null);
    } catch (error) {
      setProblem(`${file.name} cannot be read: ${error.message}`);
    }
  };
  const call = run?.calls.get(picked);
  const pick = (rid) => {
    setChosen(run.id); // a run that begins later does not take its place
    setPicked(rid);
  };
  return html`<div class="view programs">
    <div class="row">
      <h2>Programs</h2><span class="space"></span>
      <input ref=${picker} type="file" class="hidden" tabindex="-1" accept=".jsonl,application/json" aria-label="Recording" onChange=${open} />
      <button type="button" onClick=${() => picker.current.click()}>Open a recording</button>
    </div>
    ${problem && html`<p class="error" role="alert">${problem}</p>`}
    ${state.error && html`<p class="error" role="alert">${state.error}</p>`}
    ${all.length > 1 && html`<div class="segments runs" role="group" aria-label="Runs">${all.map((one) => html`<button type="button" aria-pressed=${String(one === run)} onClick=${() => (setChosen(one.id), setPicked(null))}>${one.title || `run ${one.id.slice(0, 6)}`} <span class="hint">${one.calls.size}</span></button>`)}</div>`}
    <div class="lines" ref=${box} tabindex="0" role="region" aria-label="Line of time">${run && html`<${TimeLine} run=${run} width=${width} picked=${picked} onPick=${pick} />`}</div>
    ${run && html`${run.isCut && html`<p class="hint">The first ${run.calls.size} requests of the run are shown.</p>`}<p class="hint legend-line"><span class="key c0">free text</span><span class="key c3">constrained, or a choice</span><span class="key c2">runs</span><span class="key idle">prefix computed for forks</span><span class="key c4">aborted</span></p>`}
    ${!run && html`<${Empty} />`}
    ${call && html`<${Call} key=${`${run.id} ${call.rid}`} run=${run} call=${call} calls=${calls} />`}
  </div>`;
}
