// The official SDK of Node. Arguments: address, key, model. Prints one JSON object.
import OpenAI from "openai";

const [address, key, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: address, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Sort." }];
const common = { model, temperature: 0, max_tokens: 16 };
const tool = { type: "function", function: { name: "add", parameters: { type: "object", properties: {} } } };
const schema = {
  type: "object",
  properties: { colour: { enum: ["red", "green"] }, loud: { type: "boolean" } },
  required: ["colour", "loud"],
  additionalProperties: false,
};

async function joined(stream, piece) {
  let text = "";
  for await (const chunk of stream) text += (chunk.choices[0] && piece(chunk.choices[0])) ?? "";
  return text;
}

const whole = await client.chat.completions.create({ ...common, messages });
const offered = await client.chat.completions.create({ ...common, messages, tools: [tool], tool_choice: "auto" });
const structured = await client.chat.completions.create({
  ...common, messages, max_tokens: 100,
  response_format: { type: "json_schema", json_schema: { name: "choice", strict: true, schema } },
});
const raw = await client.completions.create({ ...common, prompt: ["def f(", "class A:"], logprobs: 2 });
let refused = "";
try {
  await new OpenAI({ baseURL: address, apiKey: "sk-wrong", maxRetries: 0 }).models.list();
} catch (error) {
  refused = error.constructor.name;
}
console.log(JSON.stringify({
  chat: whole.choices[0].message.content,
  usage: whole.usage.completion_tokens,
  streamed: await joined(
    await client.chat.completions.create({ ...common, messages, stream: true, stream_options: { include_usage: true } }),
    (choice) => choice.delta.content,
  ),
  completion: raw.choices[0].text,
  batch: raw.choices[1].text,
  logprobs: raw.choices[0].logprobs.token_logprobs.length,
  completion_streamed: await joined(
    await client.completions.create({ ...common, prompt: "def f(", stream: true }), (choice) => choice.text),
  structured: JSON.parse(structured.choices[0].message.content),
  tools: offered.choices[0].message.content,
  tool_calls: offered.choices[0].message.tool_calls ?? [],
  models: (await client.models.list()).data.map((one) => one.id),
  refused,
}));
