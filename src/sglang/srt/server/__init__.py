"""WING 1: text and pixels. HTTP, templates, tokenizing, media, parsers. No scheduling, no model.

A file imports only what stands below it in this list:

    http_server.py         which path goes where; errors
    openapi.py             the OpenAPI document
    parsing_api.py         the parsers of answers as endpoints
    native_api.py          /generate, /score_choices and what operators need
    openai/                /v1/...: routes, chat, completions
    auth.py                API keys, limits of bodies
    choices.py             scoring of choices
    native_format.py       the native API's bodies and replies (the offline Engine's too)
    encoding.py            /encode
    responses.py           JSON, event streams, errors, clients that hang up
    tokenizer_manager.py   owns every call in flight: text -> ids -> scheduler -> text
    health_check.py        whether the engine generates
    call_records.py        the log, metrics and traces of calls
    calls.py               Call and Sequence: what is in flight
    schema_checks.py       answers that are checked against their schema at the end (in children: schema_check_work.py)
    request_maker.py       GenerateReq -> TokenizedReqs
    parameter_room.py      how much long sampling parameters may take together
    validation.py          rules that need the model's numbers
    metrics.py             Prometheus
    request_log.py         the log of requests
    generate_req.py        GenerateReq and GenerateOut
    sessions.py            conversations that the server keeps
    detokenizer.py         TokenOut -> text
    aside.py               long work on other threads
    shares.py              places that clients share
    multimodal/            media
    parsers/               reasoning and tool calls
    tokenization/          tokenizers and chat templates
    fields.py              checks of JSON fields
    wire_numbers.py        numbers in headers
"""
