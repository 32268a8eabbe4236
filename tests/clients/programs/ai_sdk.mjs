// Vercel's ai with @ai-sdk/openai (responses and chat) and @ai-sdk/openai-compatible. Usage: ai_sdk.mjs URL MODEL [tools]
// tools: the server answers by a script, a call first.
import assert from "node:assert";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const [url, name, mode] = process.argv.slice(2);
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "None" });
const compatible = createOpenAICompatible({
  name: "local", baseURL: `${url}/v1`, apiKey: "None", includeUsage: true, supportsStructuredOutputs: true,
});
const models = { responses: openai.responses(name), chat: openai.chat(name), compatible: compatible(name) };
const prompt = "What is the capital of France? Answer in one sentence.";
const common = { temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const schema = jsonSchema({
  type: "object", additionalProperties: false, required: ["city"], properties: { city: { type: "string", maxLength: 20 } },
});

async function texts(model) {
  const reply = await generateText({ ...common, model, prompt });
  assert.match(reply.text, /Paris/);
  assert.ok(reply.usage.outputTokens > 0 && reply.usage.inputTokens > 0);
  assert.ok(["stop", "length"].includes(reply.finishReason), reply.finishReason);
  const stream = streamText({ ...common, model, prompt });
  assert.equal(await stream.text, reply.text);
  assert.equal((await stream.usage).outputTokens, reply.usage.outputTokens);
  const typed = await generateText({
    ...common, maxOutputTokens: 100, model, prompt: "Where is the Colosseum?", output: Output.object({ schema }),
  });
  assert.equal(typeof typed.output.city, "string");
  const asked = await generateText({
    ...common, maxOutputTokens: 60, model, prompt: "Weather in Rome?", toolChoice: "required",
    tools: { get_weather: tool({ description: "Weather", inputSchema: schema }) },
  });
  assert.equal(asked.toolCalls[0].toolName, "get_weather");
  assert.equal(typeof asked.toolCalls[0].input.city, "string");
}

async function tools(model, hints) {
  for (const run of [generateText, streamText]) {
    const cities = [];
    const execute = async ({ city }) => { cities.push(city); return `It rains in ${city}.`; };
    const done = run({
      ...common, ...hints, model, prompt: "What is the weather in Rome?", stopWhen: stepCountIs(3), maxOutputTokens: 100,
      tools: { get_weather: tool({ description: "Weather", inputSchema: schema, execute }) },
    });
    const { text, steps } = run === generateText ? await done : { text: await done.text, steps: await done.steps };
    assert.equal(text, "Take an umbrella.");
    assert.deepEqual(cities, ["Rome"]);
    assert.equal(steps.length, 2);
  }
}

for (const [kind, model] of Object.entries(models)) {
  if (mode === "tools") {
    await tools(model, {});
    // what is stored is referred to in the second step, what is not is sent again
    if (kind === "responses") await tools(model, { providerOptions: { openai: { store: false } } });
  } else await texts(model);
  console.error(kind, "is fine");
}
console.log("all good");
