// Constraints to begin with, each with a question that goes with it.
const schema = (value) => JSON.stringify(value, null, 2);

export const EXAMPLES = {
  json_schema: [
    {
      name: "A character",
      prompt: "Describe a character of a fantasy novel.",
      text: schema({
        type: "object",
        properties: {
          name: { type: "string", maxLength: 30 },
          age: { type: "integer", minimum: 1, maximum: 999 },
          house: { type: "string", enum: ["north", "south", "sea", "sky"] },
          is_wizard: { type: "boolean" },
          skills: { type: "array", items: { type: "string", maxLength: 30 }, minItems: 2, maxItems: 4 },
          pet: { type: "object", properties: { name: { type: "string", maxLength: 20 }, kind: { type: "string", maxLength: 20 } }, required: ["name", "kind"] },
        },
        required: ["name", "age", "house", "is_wizard", "skills", "pet"],
      }),
    },
    {
      name: "Facts from a text",
      prompt: "Extract the facts: Marie Curie, born in Warsaw in 1867, won two Nobel Prizes.",
      text: schema({
        type: "object",
        properties: { person: { type: "string" }, born_in: { type: "string" }, year: { type: "integer" }, num_prizes: { type: "integer" } },
        required: ["person", "born_in", "year", "num_prizes"],
      }),
    },
  ],
  regex: [
    { name: "Yes or no, with a reason", prompt: "Is a whale a fish?", text: "(Yes|No), because [a-z ]{10,60}\\." },
    { name: "A date", prompt: "When did people first land on the moon?", text: "(19|20)\\d\\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])" },
  ],
  ebnf: [
    {
      name: "Arithmetic",
      prompt: "Write the sum of the numbers from one to five.",
      text: 'root ::= term (" " op " " term)* \nterm ::= number | "(" root ")"\nop ::= "+" | "-" | "*"\nnumber ::= [0-9]{1,3}\n',
    },
    { name: "A haiku's shape", prompt: "Write a haiku about rain.", text: 'root ::= line "\\n" line "\\n" line\nline ::= [A-Z] [a-z ,]{8,40}\n' },
  ],
};
