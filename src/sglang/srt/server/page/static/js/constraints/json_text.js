// JSON as a text in which places matter: where it is wrong, where a path leads, and what a beginning of it says so far.

export class JsonError extends Error {
  constructor(message, at) {
    super(message);
    this.at = at;
  }
}

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const MAX_DEPTH = 100;
const ESCAPES = { '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

class Reader {
  /** `partial`: the text may end anywhere. `places`: where each value stands, by its path ("#/a/0"). */
  constructor(text, partial) {
    this.text = text;
    this.at = 0;
    this.partial = partial;
    this.places = new Map();
    this.cut = false;
    this.depth = 0;
  }

  fail(message) {
    if (this.partial && this.at >= this.text.length) {
      this.cut = true;
      return undefined;
    }
    throw new JsonError(message, this.at);
  }

  space() {
    while (" \t\n\r".includes(this.text[this.at] ?? "x")) this.at += 1;
  }

  value(path) {
    this.space();
    const from = this.at;
    if (this.depth >= MAX_DEPTH) {
      this.cut = this.partial;
      if (this.partial) return undefined;
      throw new JsonError(`values stand in each other more than ${MAX_DEPTH} levels deep`, from);
    }
    this.depth += 1;
    const found = this.any(path);
    this.depth -= 1;
    this.places.set(path, [from, this.at]);
    return found;
  }

  any(path) {
    const c = this.text[this.at];
    if (c === undefined) return this.fail("a value is missing");
    if (c === "{") return this.object(path);
    if (c === "[") return this.array(path);
    if (c === '"') return this.string();
    for (const [word, meaning] of [["true", true], ["false", false], ["null", null]]) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return meaning;
      }
      if (this.partial && word.startsWith(this.text.slice(this.at))) {
        this.at = this.text.length;
        this.cut = true;
        return undefined;
      }
    }
    NUMBER.lastIndex = this.at;
    const number = NUMBER.exec(this.text);
    if (!number) return this.fail(c === "'" ? "strings stand between double quotes" : "this is no value");
    this.at += number[0].length;
    return Number(number[0]);
  }

  object(path) {
    const found = {};
    this.at += 1;
    this.space();
    if (this.text[this.at] === "}") {
      this.at += 1;
      return found;
    }
    while (!this.cut) {
      this.space();
      if (this.text[this.at] !== '"') {
        this.fail(this.text[this.at] === "}" ? "there is a comma too many" : "the name of a member is missing");
        return found;
      }
      const name = this.string();
      if (this.cut) return found;
      this.space();
      if (this.text[this.at] !== ":") {
        this.fail("a colon is missing");
        return found;
      }
      this.at += 1;
      const value = this.value(`${path}/${name.replaceAll("~", "~0").replaceAll("/", "~1")}`);
      if (value !== undefined) Object.defineProperty(found, name, { value, enumerable: true, configurable: true, writable: true });
      if (this.cut || !this.more("}")) return found;
    }
    return found;
  }

  array(path) {
    const found = [];
    this.at += 1;
    this.space();
    if (this.text[this.at] === "]") {
      this.at += 1;
      return found;
    }
    while (!this.cut) {
      const value = this.value(`${path}/${found.length}`);
      if (value !== undefined) found.push(value);
      if (this.cut || !this.more("]")) return found;
    }
    return found;
  }

  /** Whether another item follows. */
  more(end) {
    this.space();
    const c = this.text[this.at];
    if (c !== "," && c !== end) this.fail(`a comma or ${end} is missing`);
    this.at += 1;
    return c === ",";
  }

  string() {
    let text = "";
    this.at += 1;
    for (;;) {
      const c = this.text[this.at];
      if (c === undefined) {
        this.fail("the string has no end");
        return text;
      }
      if (c === "\n") throw new JsonError("the string has no end in its line", this.at);
      this.at += 1;
      if (c === '"') return text;
      if (c !== "\\") {
        text += c;
        continue;
      }
      const escaped = this.text[this.at];
      if (escaped === undefined) {
        this.fail("the string has no end");
        return text;
      }
      this.at += 1;
      if (escaped === "u") {
        const code = /^[0-9a-fA-F]{4}/.exec(this.text.slice(this.at, this.at + 4));
        if (!code) {
          this.at = this.partial && this.text.length - this.at < 4 ? this.text.length : this.at;
          this.fail("\\u needs four hexadecimal digits");
          return text;
        }
        text += String.fromCharCode(parseInt(code[0], 16));
        this.at += 4;
      } else if (escaped in ESCAPES) {
        text += ESCAPES[escaped];
      } else {
        this.at -= 2;
        throw new JsonError(`\\${escaped} is no escape`, this.at);
      }
    }
  }
}

/** {value, places}. Throws a JsonError, which says where. */
export function readJson(text) {
  const reader = new Reader(text, false);
  const value = reader.value("#");
  reader.space();
  if (reader.at < text.length) throw new JsonError("something follows the end", reader.at);
  return { value, places: reader.places };
}

/** What the beginning of a JSON text says so far; undefined for nothing, or for what is none. */
export function readBeginning(text) {
  try {
    return new Reader(text, true).value("#");
  } catch {
    return undefined;
  }
}
