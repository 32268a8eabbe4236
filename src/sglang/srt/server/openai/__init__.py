"""OpenAI's API. A file imports only what stands below it in this list:

    routes.py        the endpoints
    completions.py   one request to /v1/completions
    chat.py          one request to /v1/chat/completions
    sse.py           chunks of streams, usage
    logprobs.py      log probabilities in OpenAI's shapes
    sampling.py      sampling parameters by OpenAI's names
    messages.py      chat messages
    protocol.py      fields: taken, accepted, refused, unknown
"""
