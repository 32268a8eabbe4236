// A recording (a file of one JSON object a line) as the runs that live ones are: {id, title, calls, began}.

export function readRecording(text) {
  const runs = new Map();
  text.split("\n").forEach((line, i) => {
    if (!line.trim()) return;
    let row;
    try {
      row = JSON.parse(line);
    } catch {
      throw new Error(`line ${i + 1} is not JSON: is this a recording?`);
    }
    if (typeof row !== "object" || row === null || typeof row.kind !== "string") throw new Error(`line ${i + 1} is no event of a recording`);
    const id = String(row.run ?? "");
    if (!runs.has(id)) runs.set(id, { id, title: "", calls: new Map(), began: 0 });
    const run = runs.get(id);
    if (row.kind === "run") run.title = [row.program, row.backend, row.model].filter(Boolean).join(" · ");
    if (row.kind === "call") run.calls.set(`${run.calls.size}`, callOf(row, run.calls.size));
  });
  const found = [...runs.values()].filter((run) => run.calls.size);
  if (!found.length) throw new Error("there is no request in this recording");
  return found;
}

function callOf(row, index) {
  const { answer, options, kind } = row.value;
  const meta = answer.metas?.[0] ?? answer.meta ?? {};
  const scores = answer.meta?.normalized_prompt_logprobs ?? [];
  return {
    rid: String(index),
    branch: String(row.branch ?? "0"),
    name: row.name ?? kind,
    at: row.started ?? 0,
    ended: row.time,
    prompt: row.text ?? "",
    prompt_len: meta.prompt_tokens ?? null,
    cached: meta.cached_tokens ?? null,
    completion: meta.completion_tokens ?? null,
    text: answer.decision ?? answer.texts?.[0] ?? "",
    constraint: ["regex", "json_schema", "ebnf", "structural_tag"].find((name) => options?.[name]) ?? false,
    choices: options?.choices?.map((choice, i) => [choice, scores[i] ?? null]) ?? null,
    reason: meta.finish_reason?.type ?? "",
  };
}
