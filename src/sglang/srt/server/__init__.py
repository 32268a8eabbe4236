"""WING 1: text and pixels. HTTP, templates, tokenizing, media, parsers. No scheduling, no model.

A request arrives in `http/`, an API converts it to a GenerateReq, and `tokenizer_manager.py` runs it: `request_maker.py` makes token
ids, `in_flight.py` sends them to the scheduler and receives the outputs, and the API reads these from `calls.py`. The import layers are
a contract in pyproject.toml ("layers of the server").

    http/          connections, bodies, API keys, replies; app.py has the routes
    openai/        /v1/...: one file for each endpoint
    anthropic/     /v1/messages
    native/        /generate, /score_choices, /encode and what operators need
    telemetry/     metrics, the log of requests, traces
    limits/        limits of a request and of all requests together
    multimodal/    images and videos
    parsers/       reasoning and tool calls
    tokenization/  tokenizers, chat templates, detokenizing
"""
