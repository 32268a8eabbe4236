// The machine: the prefix tree, the steps, queue, memory and latencies.
import { html, useEffect, useRef, useState, useStore, em, plural, short, seconds } from "../lib.js";
import { getJson, pathOf, pathOfModel, server } from "../api.js";
import { bytes, Icicle } from "./icicle.js";
import { live, look, lookAt, nodes, placeOf, rates, replicas, shownReplica, showReplica, steps } from "./live.js";

const KINDS = [
  ["prompt", "--c2", "prompt rows"],
  ["decode", "--c0", "decode rows"],
  ["forced", "--c3", "forced by a grammar"],
  ["accepted", "--c1", "drafts accepted"],
  ["rejected", "--idle", "drafts rejected"],
];
const BAR = 7;

const partsOf = (step) => ({ ...step, rejected: Math.max(step.draft - step.accepted, 0) });

function drawSteps(canvas, shown) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  pen.scale(scale, scale);
  const most = Math.max(8, ...shown.map((step) => KINDS.reduce((sum, [name]) => sum + partsOf(step)[name], 0)));
  // a prompt has hundreds of rows and a step of decoding a few: by the square root both are seen
  const tall = (rows) => Math.sqrt(rows / most) * (height - 14);
  shown.forEach((step, i) => {
    const parts = partsOf(step);
    let rows = 0;
    for (const [name, hue] of KINDS) {
      if (!parts[name]) continue;
      const from = tall(rows);
      rows += parts[name];
      pen.fillStyle = style.getPropertyValue(hue);
      pen.fillRect(width - (shown.length - i) * BAR, height - tall(rows), BAR - 1, tall(rows) - from);
    }
  });
  pen.fillStyle = style.getPropertyValue("--soft");
  pen.font = `${0.7 * em()}px ${style.fontFamily}`;
  pen.fillText(shown.length ? `${short(most)} rows` : "No step since this view was opened.", 0.5 * em(), em());
}

function Steps({ version }) {
  const canvas = useRef(null);
  useEffect(() => {
    const room = Math.floor(canvas.current.clientWidth / BAR);
    drawSteps(canvas.current, steps.slice(-room));
  }, [version]);
  const last = steps.at(-1);
  return html`<figure class="steps">
    <canvas ref=${canvas} role="img" aria-label=${last ? `the last step: ${last.prompt} prompt rows, ${last.decode} decode rows, ${last.accepted} of ${last.draft} draft tokens accepted` : "no steps yet"}></canvas>
    <figcaption>${KINDS.map(([, hue, label]) => html`<span class=${`key ${hue.slice(2)}`}>${label}</span>`)}</figcaption>
  </figure>`;
}

function Figure({ label, value, unit, of, detail }) {
  return html`<div class="figure"><dt>${label}</dt><dd>${value}${unit && html` <small>${unit}</small>`}${of !== undefined && html`<meter min="0" max="1" value=${of} aria-label=${label}></meter>`}</dd>${detail && html`<dd class="detail">${detail}</dd>`}</div>`;
}

const LATENCIES = [
  ["queue", "In the queue"],
  ["first", "First token"],
  ["between", "Each token"],
  ["whole", "Whole answer"],
];

/** Of the requests that ended while somebody looked. */
function Latencies({ found }) {
  if (!found?.count) return null;
  return html`<section aria-label="Latencies"><h2>Latencies of the last ${plural(found.count, "request")}</h2>
    <dl class="figures">${LATENCIES.map(([name, label]) => html`<${Figure} label=${label} value=${found[name] ? seconds(found[name][0]) : "–"} detail=${found[name] ? `95 % within ${seconds(found[name][1])}` : ""} />`)}</dl>
  </section>`;
}

/** Several models behind one address: which one is looked at. */
function Models({ known, model }) {
  const [states, setStates] = useState([]);
  useEffect(() => {
    const ask = () => getJson("/models").then((found) => setStates(found.models), () => {});
    ask();
    const timer = setInterval(ask, 3000);
    return () => clearInterval(timer);
  }, [known]);
  const at = model ?? pathOf("").split("/").slice(2).map(decodeURIComponent).join("/");
  return html`<div class="segments" role="group" aria-label="Models">${states.map((one) => html`<button type="button" aria-pressed=${String(one.name === at)} onClick=${() => lookAt(one.name)}>${one.name} <span class="hint">${one.state === "ready" ? plural(one.requests, "request") : one.state}</span></button>`)}</div>`;
}

/** The replicas side by side; one of them is drawn below. */
function Replicas({ shown, perToken }) {
  const row = ([number, replica]) => {
    const { stats } = replica;
    const rate = rates(replica);
    let cached = 0;
    for (const node of replica.nodes.values()) cached += node.length;
    const [used, total] = [stats?.num_used_tokens ?? 0, stats?.max_total_tokens ?? 0];
    return html`<tr class=${number === shown ? "on" : ""}>
      <th scope="row"><button type="button" aria-pressed=${String(number === shown)} onClick=${() => showReplica(number)}>Replica ${number + 1}</button></th>
      <td>${total ? stats.num_running : "–"}</td><td>${total ? stats.num_waiting : "–"}</td><td>${short(rate.generated)}</td><td>${short(rate.prompt)}</td>
      <td>${total ? html`<meter min="0" max="1" value=${used / total} aria-label=${`KV in use by replica ${number + 1}`}></meter> ${short(used)}` : "away"}</td><td>${short(cached)}${perToken ? ` (${bytes(cached * perToken)})` : ""}</td>
    </tr>`;
  };
  return html`<section aria-label="Replicas"><h2>Replicas</h2><div class="table" tabindex="0" role="region" aria-label="Replicas, side by side"><table class="replicas">
    <thead><tr><th scope="col">Replica</th><th scope="col">Running</th><th scope="col">Waiting</th><th scope="col">Tokens/s</th><th scope="col">Prompt tokens/s</th><th scope="col">KV in use</th><th scope="col">Prefix cache</th></tr></thead>
    <tbody>${[...replicas].sort(([a], [b]) => a - b).map(row)}</tbody>
  </table></div></section>`;
}

export function Machine() {
  const state = useStore(live);
  const known = useStore(server);
  const [info, setInfo] = useState(null);
  const [, tick] = useState(0);
  useEffect(() => look(known), [placeOf(known)]);
  useEffect(() => {
    setInfo(null);
    const path = "/get_server_info";
    if (state.connected) getJson(state.model === null ? pathOf(path) : pathOfModel(state.model, path)).then(setInfo, () => {});
  }, [known, state.model, state.connected]);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 500);
    return () => clearInterval(timer);
  }, []);
  const models = known?.isGateway && html`<${Models} known=${known} model=${state.model} />`;
  if (state.error) return html`<div class="view machine"><h2>Machine</h2>${models}<p class="error" role="alert">${state.error}</p></div>`;
  const { stats, omitted, late } = shownReplica();
  const perToken = info?.model?.kv_bytes_per_token ?? 0;
  const rate = rates();
  const recent = steps.slice(-40).filter((step) => step.seconds > 0);
  const typical = recent.map((step) => step.seconds).sort((a, b) => a - b)[Math.floor(recent.length / 2)];
  let cached = 0;
  let locked = 0;
  for (const node of nodes.values()) {
    cached += node.length;
    if (node.locked) locked += node.length;
  }
  const total = stats?.max_total_tokens ?? 0;
  const version = `${state.replica} ${nodes.size} ${steps.length} ${steps.at(-1)?.at} ${late}`;
  return html`<div class="view machine">
    ${models}
    ${replicas.size > 1 && html`<${Replicas} shown=${state.replica} perToken=${perToken} />`}
    <dl class="figures">
      <${Figure} label="Running" value=${stats?.num_running ?? "–"} detail=${stats ? `${stats.num_waiting} wait${stats.num_grammar_waiting ? `, ${stats.num_grammar_waiting} for their grammar` : ""}` : ""} />
      <${Figure} label="Generating" value=${short(rate.generated)} unit="tokens/s" detail=${`${short(rate.prompt)} prompt tokens/s`} />
      <${Figure} label="Steps" value=${short(rate.steps)} unit="a second" detail=${typical ? `${seconds(typical)} each` : "idle"} />
      <${Figure} label="KV in use" value=${stats ? short(stats.num_used_tokens) : "–"} of=${total ? stats.num_used_tokens / total : 0} detail=${total ? `of ${short(total)} tokens, ${bytes(total * perToken)}` : ""} />
      <${Figure} label="Prefix cache" value=${short(cached)} unit="tokens" of=${total ? cached / total : 0} detail=${`${nodes.size} nodes, ${bytes(cached * perToken)}, ${short(locked)} locked`} />
      <${Figure} label="Cache hit rate" value=${stats ? `${(stats.cache_hit_rate * 100).toFixed(0)} %` : "–"} detail="of prompt tokens" />
      <${Figure} label="Drafts" value=${rate.draft ? `${Math.round((100 * Math.min(rate.accepted, rate.draft)) / rate.draft)} %` : "none"} detail="accepted" />
      <${Figure} label="Retractions" value=${stats?.num_retractions ?? "–"} detail="memory taken back" />
    </dl>
    <${Latencies} found=${state.latencies} />
    <section aria-label="Steps"><h2>Steps</h2><${Steps} version=${version} /></section>
    <section class="grows" aria-label="Prefix tree"><h2>Prefix tree</h2>
      ${omitted > 0 && html`<p class="hint">${omitted} more nodes are not shown.</p>`}
      <${Icicle} version=${version} bytesPerToken=${perToken} />
      ${!nodes.size && html`<p class="hint center">Nothing is cached yet. Send a request.</p>`}
    </section>
  </div>`;
}
