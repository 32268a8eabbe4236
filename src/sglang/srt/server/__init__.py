"""WING 1: text and pixels. HTTP, templates, tokenizing, media, parsers. No scheduling, no model.

A request comes in through `http/`, an API makes a GenerateReq of it, and `tokenizer_manager.py` has it answered: `request_maker.py`
makes token ids, `in_flight.py` sends them to the scheduler and takes the outputs, `calls.py` is what the API reads them from. Who may
import whom is a contract in pyproject.toml ("layers of the server").

    http/          connections, bodies, API keys, replies; app.py says which path goes where
    openai/        /v1/...: one file for each endpoint
    anthropic/     /v1/messages
    native/        /generate, /score_choices, /encode and what operators need
    telemetry/     metrics, the log of requests, traces
    limits/        how much clients may ask for, one by one and together
    multimodal/    images and videos
    parsers/       reasoning and tool calls
    tokenization/  tokenizers, chat templates, and back from tokens to text
"""
