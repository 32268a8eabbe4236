// A text as blocks of markup, a few thousand characters at a time: so long one reading takes, whatever the text is and however much of it
// there is. What is over is read once.
import { clean, columnsOf, md, mostRows } from "./markup.js";

/** Characters of a reading. A block that is longer is cut where that is not seen: between items of a list, rows of a table, lines. */
const STEP = 8000;
/** What has no such place is cut at the end of a line or word. */
const LONGEST = 20_000;
const LONGEST_CODE = 60_000;
const MAX_LINES = 1000;
/** of what stands above the rest of a table or of a piece of code: its heads, or its first line */
const LONGEST_HEAD = 1000;
/** Characters that are read more or less at once, by how long that takes. */
const FIRST = 2000;
const LEAST = 500;
/** Characters of markup that are drawn together: a block that has more is cut, and of several blocks so many are taken. */
const MAX_MARKUP = 15_000;
/** a reading that takes longer makes the next ones shorter */
const SLOW_MS = 30;
/** a shorter one is followed by the next */
const SHORT_MS = 8;

const NOTHING = clean("");

export class Growing {
  constructor() {
    this.pace = FIRST;
    this.reset();
  }

  reset() {
    this.blocks = [];
    this.goesOn = new Set(); // of blocks: what is in the next one continues it
    this.seen = "";
    this.offset = 0;
    this.reach = this.pace;
    this.head = "";
    this.env = {};
  }

  /** Reads on in a text, which begins with the one that was read before or is another one. Returns {tail, isMore}: the markup of what is not
   * over, and whether there is more to read. */
  feed(text) {
    if (!text.startsWith(this.seen.slice(0, this.offset))) this.reset();
    this.seen = text;
    const began = performance.now();
    let took = 0;
    let found;
    do {
      found = this.read(text);
      took = performance.now() - began;
    } while (found.isMore && took < SHORT_MS);
    this.pace = took > SLOW_MS ? Math.max(this.pace / 2, LEAST) : Math.min(this.pace * 2, STEP);
    return found;
  }

  read(text) {
    const length = text.length - this.offset;
    if (length <= 0) return { tail: NOTHING, isMore: false };
    const isAll = this.reach >= length;
    const rest = this.head + text.slice(this.offset, this.offset + this.reach);
    const tokens = md.parse(rest, this.env);
    const starts = tokens.map((token, i) => [token, i]).filter(([token]) => token.level === 0 && token.map && token.nesting >= 0);
    const full = starts.findIndex(([token]) => token.type === "table_open" && isCut(token, rest));
    if (full >= 0) {
      const [from, to] = starts[full][0].map;
      this.take(tokens.slice(0, starts[full + 1]?.[1]), lineStart(rest, to), headOf(rest.slice(lineStart(rest, from)), 2));
      return { tail: NOTHING, isMore: true };
    }
    if (starts.length > 1 && starts.at(-1)[1] > 0) {
      const [next, at] = this.firstBehind(tokens, starts);
      this.take(tokens.slice(0, at), lineStart(rest, next.map[0]));
      const isLast = isAll && next === starts.at(-1)[0];
      return isLast ? { tail: this.markup(tokens.slice(at)), isMore: false } : { tail: NOTHING, isMore: true };
    }
    const markup = this.render(tokens);
    const most = markup.length > MAX_MARKUP ? Math.max(Math.floor((rest.length * MAX_MARKUP) / markup.length), LEAST) : STEP;
    const cut = rest.length - this.head.length >= most ? cutOf(tokens, rest, this.head.length, most) : null;
    if (cut) {
      if (!cut.head) this.goesOn.add(this.blocks.length);
      this.take(md.parse(rest.slice(0, cut.at), this.env), cut.at, cut.head);
      return { tail: NOTHING, isMore: true };
    }
    if (!isAll) this.reach += this.pace;
    return { tail: clean(markup), isMore: !isAll };
  }

  /** The block that is not over, or the one at which what is before has much markup. */
  firstBehind(tokens, starts) {
    let length = 0;
    for (let i = 1; i < starts.length; i += 1) {
      length += this.render(tokens.slice(starts[i - 1][1], starts[i][1])).length;
      if (length > MAX_MARKUP) return starts[i];
    }
    return starts.at(-1);
  }

  render(tokens) {
    return md.renderer.render(tokens, md.options, this.env);
  }

  markup(tokens) {
    return clean(this.render(tokens));
  }

  /** These blocks are over, `length` characters of what was read. */
  take(tokens, length, head = "") {
    this.blocks.push(this.markup(tokens));
    this.offset += length - this.head.length;
    this.reach = this.pace;
    this.head = head;
  }
}

/** Whether a table has as many rows as are read at once, and another line that may be one behind them. */
function isCut({ map: [from, to] }, text) {
  const line = text.slice(lineStart(text, from + 1)).split("\n", 1)[0];
  return to - from >= 2 + mostRows(columnsOf(line)) && text.slice(lineStart(text, to)).split("\n", 1)[0].trim() !== "";
}

/** The first lines of a text, if they are short enough to stand above its rest, too. */
function headOf(text, count) {
  const head = text.slice(0, lineStart(text, count));
  return head.length <= LONGEST_HEAD ? head : "";
}

/** Where the one block of a text is cut, after `most` characters: {at, head}; null if it is to be read on. The first `done` have been read
 * before. */
function cutOf(tokens, text, done, most) {
  const { type } = tokens[0] ?? {};
  const numHeads = { fence: 1, table_open: 2 }[type] ?? 0;
  const head = headOf(text, numHeads);
  if (type === "fence") {
    const end = Math.min(lineStart(text, MAX_LINES), LONGEST_CODE);
    return text.length <= end ? null : { at: endIn(text, end, Math.max(done, head.length)), head };
  }
  if (/^(bullet|ordered)_list_open$/.test(type)) {
    const items = tokens.filter((token) => token.type === "list_item_open" && token.level === 1).map((token) => lineStart(text, token.map[0]));
    const at = items.findLast((start) => start > 0 && start <= most) ?? items.find((start) => start > 0 && start <= LONGEST);
    if (at) return { at, head: "" };
  }
  if (numHeads || type === "paragraph_open" || type === undefined) return { at: endIn(text, most, Math.max(done, head.length)), head };
  return text.length < LONGEST ? null : { at: endIn(text, LONGEST, done), head: "" };
}

/** The end of the last line, or else word, within the first `most` characters and beyond `least`; never within a character. */
function endIn(text, most, least) {
  const at = [text.lastIndexOf("\n", most - 1) + 1, text.lastIndexOf(" ", most - 1) + 1].find((end) => end > least) ?? most;
  return /[\udc00-\udfff]/.test(text[at] ?? "") ? at + 1 : at;
}

function lineStart(text, line) {
  let at = 0;
  for (let n = 0; n < line; n += 1) {
    const end = text.indexOf("\n", at);
    if (end < 0) return text.length;
    at = end + 1;
  }
  return at;
}
