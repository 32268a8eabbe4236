"""OpenAI's API: one file for each endpoint, and shared helpers. pyproject.toml has the layers ("layers of OpenAI's API").

routes.py        the endpoints
chat.py          one request to /v1/chat/completions; completions.py, embeddings.py, scoring.py (/v1/score, /v1/rerank) likewise
responses/       /v1/responses, run as a chat, and the stored responses
prompts.py       the prompt of a chat request; tools.py, template_hints.py
protocol.py      fields: implemented, accepted, refused, unknown
answers.py       one choice, gathered from its pieces; blocks.py: as typed blocks
sampling.py      sampling parameters by OpenAI's names
logprobs.py      log probabilities in OpenAI's shapes
"""
