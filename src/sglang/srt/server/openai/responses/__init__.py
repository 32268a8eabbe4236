"""OpenAI's Responses API, implemented on top of the chat API. pyproject.toml has the layers ("layers of the Responses API").

api.py             one request, and the format of its answer
request_body.py    its fields: implemented, ignored, refused; the conversion to a chat's body
input_items.py     the items of its input as messages
response_tools.py  its tools
truncation.py      the oldest turns left out
text_logprobs.py   log probabilities of each text of an answer
store.py           stored responses
response_disk.py   the same on disk (--state-dir)
replay.py          the events of a stored response
"""
