// An answer in JSON as a form that fills while it is written. The schema says what will come, so that its fields are there before.
import { html } from "../lib.js";

const titled = (name) => name.replaceAll("_", " ");

function kindOf(schema) {
  const type = Array.isArray(schema?.type) ? schema.type.find((one) => one !== "null") : schema?.type;
  return (typeof type === "string" ? type : null) ?? (schema?.properties ? "object" : schema?.items ? "array" : null);
}

/** Fields that are drawn before they have come: a schema that refers to itself has no end. */
export const NUM_COMING = 500;
/** Values that stand in each other are drawn as fields so deep, and below as text. */
const DEEPEST = 20;

/** A reference within the schema is followed, other forms are shown as what came. */
function resolved(schema, root, depth = 0) {
  if (typeof schema?.$ref !== "string" || !schema.$ref.startsWith("#/") || depth > 8) return schema;
  const found = schema.$ref.slice(2).split("/").reduce((at, part) => at?.[part.replaceAll("~1", "/").replaceAll("~0", "~")], root);
  return resolved(found, root, depth + 1);
}

const membersOf = (value) => (value !== null && typeof value === "object" ? value : {});
const ownOf = (value, name) => (Object.hasOwn(membersOf(value), name) ? value[name] : undefined);

/** `coming`: {left}, how many fields without a value may still be drawn. */
export function Field({ name, schema: given, root, value, coming, depth = 0 }) {
  if (value === undefined) coming.left -= 1;
  if (coming.left < 0 && value === undefined) return null;
  const schema = resolved(given, root);
  const label = typeof schema?.title === "string" ? schema.title : name === null ? "Answer" : titled(name);
  if (depth > DEEPEST && value !== null && typeof value === "object") return html`<p class="form-field"><span>${label}</span><code>${JSON.stringify(value).slice(0, 1000)}</code></p>`;
  const isObject = value !== null && typeof value === "object" && !Array.isArray(value);
  if (isObject || (value === undefined && kindOf(schema) === "object" && depth < 6)) {
    const names = [...new Set([...Object.keys(membersOf(schema?.properties)), ...Object.keys(value ?? {})])];
    return html`<fieldset class=${value === undefined ? "coming" : ""}><legend>${label}</legend>
      ${typeof schema?.description === "string" && html`<p class="hint">${schema.description}</p>`}
      ${names.map((member) => html`<${Field} key=${member} name=${member} schema=${ownOf(schema?.properties, member)} root=${root} coming=${coming} value=${ownOf(value, member)} depth=${depth + 1} />`)}
    </fieldset>`;
  }
  if (Array.isArray(value)) {
    return html`<fieldset><legend>${label} <span class="hint">${value.length}</span></legend>
      ${value.map((item, i) => html`<${Field} key=${i} name=${`${i + 1}`} schema=${schema?.prefixItems?.[i] ?? schema?.items} root=${root} coming=${coming} value=${item} depth=${depth + 1} />`)}
    </fieldset>`;
  }
  if (Array.isArray(schema?.enum) && schema.enum.every((one) => one === null || typeof one !== "object") && schema.enum.length <= 12) {
    return html`<div class="form-field"><span>${label}</span><span class="choices">${schema.enum.map((one) => html`<span class=${one === value ? "choice on" : "choice"}>${String(one)}</span>`)}</span></div>`;
  }
  if (typeof value === "boolean") return html`<label class="form-field"><span>${label}</span><input type="checkbox" checked=${value} disabled /></label>`;
  const text = value === undefined ? "" : String(value);
  const long = text.length > 60;
  return html`<label class=${value === undefined ? "form-field coming" : "form-field"}><span>${label}</span>
    ${long ? html`<textarea readonly rows=${Math.min(Math.ceil(text.length / 50), 8)} value=${text} />` : html`<input readonly value=${text} placeholder=${typeof schema?.description === "string" ? schema.description : (kindOf(schema) ?? "")} />`}
  </label>`;
}
