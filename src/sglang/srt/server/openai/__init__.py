"""OpenAI's API: one file for each endpoint, and shared helpers. pyproject.toml has the layers ("layers of OpenAI's API").

routes.py        the endpoints
chat.py          one request to /v1/chat/completions; completions.py, embeddings.py, scoring.py, reranking.py likewise
responses/       /v1/responses, run as a chat, and the stored responses; batches/: /v1/files and /v1/batches
prompts.py       the prompt of a chat request; tools.py, tool_schemas.py, harmony_turns.py, template_hints.py
protocol.py      fields: implemented, accepted, refused, unknown
answers.py       one choice, gathered from its pieces; blocks.py: as typed blocks
aliases.py       vLLM's names of fields
logprobs.py      log probabilities in OpenAI's shapes
"""
