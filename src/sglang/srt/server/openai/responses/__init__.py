"""OpenAI's Responses API, made of a chat. pyproject.toml has the layers ("layers of the Responses API").

api.py             one request, and how its answer looks
request_body.py    its fields: what is done, ignored, refused; the same request as a chat's body
input_items.py     the items of its input as messages
response_tools.py  its tools
truncation.py      the oldest turns left out
text_logprobs.py   log probabilities of each text of an answer
store.py           responses that are kept
"""
