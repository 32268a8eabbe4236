"""Anthropic's API (POST /v1/messages), made of a chat. A file imports only what stands below it in this list:

messages.py      one request, and its answer as blocks and events
request.py       the body of a request as that of a chat
content.py       messages and their content blocks as those of a chat
tools.py         tools, which of them the client runs, and the choice among them
"""
