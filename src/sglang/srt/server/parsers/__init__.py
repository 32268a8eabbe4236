"""Parsers of answers: reasoning, content and tool calls. pyproject.toml has the layers ("layers of parsers").

answer.py        reasoning, then content and calls
tool_calls.py    formats of tool calls by name
formats/         one class per format
harmony.py       gpt-oss's messages on channels
call_parser.py   the common part of all formats
json_calls.py    incremental parsing of calls as JSON objects
reasoning.py     separates reasoning from the answer
pieces.py        the pieces of an answer
"""
