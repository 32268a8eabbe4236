"""OpenAI's API: one file for each endpoint, and what they share. pyproject.toml has the layers ("layers of OpenAI's API").

routes.py        the endpoints
chat.py          one request to /v1/chat/completions; completions.py, embeddings.py, scoring.py (/v1/score, /v1/rerank) likewise
responses/       /v1/responses, made of a chat, and the responses that are kept
prompts.py       what a chat request has the model read; tools.py
protocol.py      fields: taken, accepted, refused, unknown
answers.py       one choice, gathered from its pieces; blocks.py: as typed blocks
sampling.py      sampling parameters by OpenAI's names
logprobs.py      log probabilities in OpenAI's shapes
"""
