"""Answers taken apart. A file imports only what stands below it in this list:

answer.py        thoughts, then content and calls
tool_calls.py    formats of tool calls by name
bare.py          answers that are a call in plain JSON
formats/         one class a format
call_parser.py   what all formats share
json_calls.py    calls as JSON objects, read as they grow
reasoning.py     thoughts
pieces.py        the pieces of an answer
"""
