// Where in the text an error is that the server tells of: [from, to], or null.
import { readJson } from "./json_text.js";

export function placeOf(kind, text, message) {
  if (kind === "json_schema") return pointed(text, message) ?? named(text, message);
  const position = /at position (\d+)/.exec(message);
  if (position) return [Number(position[1]), Number(position[1]) + 1];
  if (kind === "regex") return careted(text, message);
  const place = /\bat (\d+)\((\d+)\)/.exec(message);
  if (place) return named(text, message) ?? lineAt(text, Number(place[1]), Number(place[2]));
  const line = /\bat line (\d+)/.exec(message);
  if (line) return lineAt(text, Number(line[1]), 1);
  return named(text, message);
}

function pointed(text, message) {
  const pointer = /#(?:\/[^\s'":;,]*)*/.exec(message.replace(/'#[^']*'/, ""));
  if (!pointer) return null;
  const { places } = readJson(text);
  for (let path = pointer[0].replace(/\/$/, ""); path; path = path.slice(0, path.lastIndexOf("/"))) {
    if (places.has(path)) return places.get(path);
    if (path === "#") break;
  }
  return null;
}

/** A name that the message quotes, where the text has it. */
function named(text, message) {
  const quoted = /(?:Rule|name:?|type:|Unknown|unknown)\s+['"]?([\w-]+)['"]?/.exec(message);
  const words = quoted ? [quoted[1]] : /(\w+) \(/.exec(message)?.slice(1, 2);
  for (const word of words ?? []) {
    const all = [...text.matchAll(new RegExp(`(?<![\\w-])${word}(?![\\w-])`, "g"))];
    if (all.length) return [all.at(-1).index, all.at(-1).index + word.length];
  }
  return null;
}

/** The engine draws an arrow below the expression. */
function careted(text, message) {
  const drawn = /regex parse error: \|( +)(.*?) \|( +)(\^+) \| error/s.exec(message);
  if (!drawn || drawn[2] !== text) return null;
  const from = Math.max(drawn[3].length - drawn[1].length, 0);
  return [from, Math.min(from + drawn[4].length, text.length)];
}

function lineAt(text, line, column) {
  const lines = text.split("\n");
  const at = Math.max(Math.min(line, lines.length), 1) - 1;
  const from = lines.slice(0, at).reduce((sum, one) => sum + one.length + 1, 0) + Math.max(Math.min(column - 1, lines[at].length), 0);
  return [from, Math.max(from + 1, from + lines[at].length - column + 1)];
}
