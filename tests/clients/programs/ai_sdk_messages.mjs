// Vercel's ai with its provider for Anthropic: text, streams, objects, calls. Usage: ai_sdk_messages.mjs URL MODEL
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const model = createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" })(name);
const common = { model, temperature: 0, maxRetries: 0 };
const prompt = "What is the capital of France? Answer in one sentence.";

const whole = await generateText({ ...common, prompt, maxOutputTokens: 24 });
assert.match(whole.text, /Paris/);
assert.equal(whole.finishReason, "stop");
let text = "";
for await (const more of streamText({ ...common, prompt, maxOutputTokens: 24 }).textStream) text += more;
assert.equal(text, whole.text);

const tools = {
  get_weather: tool({
    description: "The weather in a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `18 degrees in ${city}`,
  }),
};
const ask = { ...common, prompt: "What is the weather in Rome?", tools, toolChoice: "required", maxOutputTokens: 60 };
const called = await generateText(ask);
assert.deepEqual(called.toolCalls.map((call) => [call.toolName, call.input]), [["get_weather", { city: "Rome" }]]);
const parts = [];
const streamed = streamText(ask);
for await (const part of streamed.fullStream) parts.push(part.type);
for (const kind of ["tool-input-start", "tool-input-delta", "tool-input-end", "tool-call", "tool-result"]) assert(parts.includes(kind));
assert.deepEqual((await streamed.toolCalls).map((call) => call.input), [{ city: "Rome" }]);
assert.equal(await streamed.finishReason, "tool-calls");

const person = Output.object({ schema: z.object({ name: z.string(), age: z.number().int() }) });
const typed = await generateText({ ...common, prompt: "Jason is 25 years old.", output: person, maxOutputTokens: 100 });
assert.equal(typed.output.age, 25);
console.log("all good");
