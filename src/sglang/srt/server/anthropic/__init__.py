"""Anthropic's API (POST /v1/messages), implemented on top of the chat API. A file imports only what stands below it in this list:

messages.py      one request, and its answer as blocks and events
request.py       converts the body of a request to that of a chat
content.py       converts messages and their content blocks to those of a chat
tools.py         tools and tool_choice
"""
