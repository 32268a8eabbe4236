"""Answers taken apart. pyproject.toml has the layers ("layers of parsers").

answer.py        reasoning, then content and calls
tool_calls.py    formats of tool calls by name
bare.py          answers that are a call in plain JSON
formats/         one class a format
call_parser.py   what all formats share
json_calls.py    calls as JSON objects, read as they grow
reasoning.py     reasoning, told from the answer
pieces.py        the pieces of an answer
"""
