// Anthropic's SDK in node: messages, streams, typed answers, a tool runner, counts, errors. Usage: anthropic_node.mjs URL MODEL
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const greedy = { model, temperature: 0 };
const hello = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];

const whole = await client.messages.create({ ...greedy, max_tokens: 24, messages: hello });
assert.match(whole.content[0].text, /Paris/);
let text = "";
const final = await client.messages
  .stream({ ...greedy, max_tokens: 24, messages: hello })
  .on("text", (more) => (text += more))
  .finalMessage();
assert.equal(text, whole.content[0].text);
assert.equal(final.stop_reason, "end_turn");
const { input_tokens } = await client.messages.countTokens({ model, messages: hello });
assert.equal(input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);

const Person = z.object({ name: z.string(), age: z.number().int() });
const typed = await client.messages.parse({
  ...greedy,
  max_tokens: 100,
  messages: [{ role: "user", content: "Jason is 25 years old." }],
  output_config: { format: zodOutputFormat(Person) },
});
assert.deepEqual(typed.parsed_output, { name: "Jason", age: 25 });

const weather = betaZodTool({
  name: "get_weather",
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  run: ({ city }) => `18 degrees in ${city}`,
});
for (const stream of [false, true]) {
  const messages = [{ role: "user", content: "What is the weather in Rome?" }];
  const ask = { ...greedy, max_tokens: 60, messages, tools: [weather], tool_choice: { type: "any" }, max_iterations: 2, stream };
  const turns = [];
  for await (const turn of client.beta.messages.toolRunner(ask)) turns.push(stream ? await turn.finalMessage() : turn);
  assert.deepEqual(turns.map((turn) => turn.stop_reason), ["tool_use", "tool_use"]);
  assert.deepEqual(turns[0].content[0].input, { city: "Rome" });
}

const refused = client.messages.create({ model, temperature: -3, max_tokens: 9, messages: hello });
await assert.rejects(refused, (error) => error instanceof Anthropic.BadRequestError && error.requestID.startsWith("req_"));
await assert.rejects(client.messages.batches.create({ requests: [] }), /batches/);
console.log("all good");
