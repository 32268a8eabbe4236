"""WING 1: text and pixels. HTTP, templates, tokenizing, media, parsers. No scheduling, no model.

A package or file imports only what stands below it in this list, but for what http/ names at its end:

    http/app.py            which path goes where; errors
    openai/, anthropic/    /v1/...: one file for each endpoint
    native/                /generate, /score_choices, /encode and what operators need
    http/                  connections, bodies, API keys, the wire (its last step: JSON, event streams, clients that hang up)
    tokenizer_manager.py   what endpoints ask: text -> ids -> scheduler -> text
    embedding_calls.py     texts on their way to the embedding scheduler and back
    control_calls.py       calls that concern the scheduler itself
    health_check.py        whether the engine generates
    in_flight.py           the calls in flight: to the scheduler and back
    resuming.py            what becomes of the calls of a scheduler that has died
    calls.py               Call and Sequence: what is in flight
    schema_checks.py       answers that are checked against their schema at the end (in children: schema_check_work.py)
    request_maker.py       GenerateReq -> TokenizedReqs
    validation.py          rules that need the model's numbers
    telemetry/             metrics, the log of requests, traces
    generate_req.py        GenerateReq and GenerateOut
    sessions.py            conversations that the server keeps
    aside.py               long work on other threads
    limits/                how much clients may ask for, one by one and together
    multimodal/            media
    parsers/               reasoning and tool calls
    tokenization/          tokenizers, chat templates, and back from tokens to text
    fields.py              checks of JSON fields
    shared_ints.py         lists of token ids that share their objects
"""
