"""OpenAI's API. A file imports only what stands below it in this list:

routes.py        the endpoints
responses/       one request to /v1/responses, and the responses that are kept
blocks.py        answers as typed blocks
scoring.py       /v1/score, /v1/rerank
embeddings.py    /v1/embeddings, /encode
completions.py   one request to /v1/completions
chat.py          one request to /v1/chat/completions
answers.py       one choice, gathered from its pieces; chunks of streams, usage
prompts.py       what a chat request has the model read: its messages, checked, as the template takes them
tools.py         tools and what they ask of the answer
logprobs.py      log probabilities in OpenAI's shapes
sampling.py      sampling parameters by OpenAI's names
protocol.py      fields: taken, accepted, refused, unknown
"""
