// The openai package of npm: responses and chats, whole and streamed, tools, parse, errors. Usage: openai_node.mjs URL MODEL
import assert from "node:assert";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "None", maxRetries: 0 });
const question = "What is the capital of France? Answer in one sentence.";
const City = z.object({ name: z.string().max(20), population: z.number().int().min(0).max(100000000) });
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };

async function responses() {
  const common = { model, input: question, max_output_tokens: 24, temperature: 0 };
  const reply = await client.responses.create(common);
  assert.match(reply.output_text, /Paris/);
  assert.equal(reply.usage.total_tokens, reply.usage.input_tokens + reply.usage.output_tokens);
  const stream = client.responses.stream(common);
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  assert.equal((await stream.finalResponse()).output_text, reply.output_text);
  assert.equal(kinds.at(-1), `response.${reply.status}`);
  const parsed = await client.responses.parse({
    model, input: "Tell me about Rome.", text: { format: zodTextFormat(City, "city") }, max_output_tokens: 200, temperature: 0,
  });
  assert.equal(typeof parsed.output_parsed.population, "number");
}

async function calls() {
  const tools = [{ type: "function", name: "get_weather", parameters, strict: true }, { type: "web_search" }];
  const input = [{ role: "user", content: "What is the weather in Rome?" }];
  const asked = await client.responses.create({ model, input, tools, tool_choice: "required", max_output_tokens: 60, temperature: 0 });
  const call = asked.output.find((item) => item.type === "function_call");
  assert.equal(call.name, "get_weather");
  JSON.parse(call.arguments);
  const result = { type: "function_call_output", call_id: call.call_id, output: "18 degrees and rain" };
  const told = await client.responses.create({ model, input: [...input, ...asked.output, result], tools, max_output_tokens: 20 });
  assert.ok(told.output.length > 0);
}

async function chats() {
  const messages = [{ role: "user", content: question }];
  const reply = await client.chat.completions.create({ model, messages, max_completion_tokens: 24, temperature: 0 });
  assert.match(reply.choices[0].message.content, /Paris/);
  const runner = client.chat.completions.stream({ model, messages, max_completion_tokens: 24, temperature: 0 });
  assert.equal(await runner.finalContent(), reply.choices[0].message.content);
  const parsed = await client.chat.completions.parse({
    model, messages: [{ role: "user", content: "Tell me about Oslo." }], response_format: zodResponseFormat(City, "city"),
    max_completion_tokens: 200, temperature: 0,
  });
  assert.equal(typeof parsed.choices[0].message.parsed.name, "string");
}

async function errors() {
  const wrong = { model, input: question, max_output_tokens: 10_000_000 };
  await assert.rejects(client.responses.create(wrong), (error) => error.status === 400 && error.param === "max_output_tokens");
  assert.equal((await client.models.list()).data[0].id, model);
  assert.equal((await client.models.retrieve(model)).id, model);
  await assert.rejects(client.models.retrieve("no-such-model"), (error) => error.code === "model_not_found");
}

for (const part of [responses, calls, chats, errors]) await part();
console.log("all good");
