"""Replies of the native API, and the parts of its bodies that several routes take."""

from __future__ import annotations

import msgspec

from sglang.srt.sampling_params import SamplingParams
from sglang.srt.server.openapi.schemas import (
    IDS,
    SAYS,
    TEXTS,
    Named,
    Schema,
    anything,
    free,
    integer,
    list_of,
    nullable,
    number,
    one_of,
    shape,
    text,
    truth,
)

ENTRY = list_of(anything(), "a log probability (null for the first token), the token's id, and its text if that is asked for")
ENTRIES = list_of(nullable(list_of(ENTRY)), "for each token, the entries of others at its place")
FINISH = shape("why it ended", {"matched": anything("what stopped it"), "message": text()}, type=text("stop, length or abort"))
META = Named(
    "MetaInfo",
    shape(
        "",
        {
            "cached_tokens": integer("tokens of the prompt that were in the prefix cache"),
            "completion_tokens": integer(),
            "e2e_latency": number("seconds, at the end"),
            "num_retractions": integer("how often it gave its memory back for a while"),
            "spec_verify_ct": integer("steps that verified a draft"),
            "spec_draft_token_num": integer("tokens that drafts proposed"),
            "spec_accept_token_num": integer("those of them that were sampled as proposed"),
            "output_token_origins": list_of(text("sampled, draft or forced"), "if return_token_origins asks"),
            "input_token_logprobs": list_of(ENTRY),
            "output_token_logprobs": list_of(ENTRY),
            **{f"{side}_{what}": ENTRIES for side in ("input", "output") for what in ("top_logprobs", "token_ids_logprobs")},
        },
        id=text("the request's rid"),
        finish_reason=nullable(FINISH),
        prompt_tokens=integer(),
    ),
)
GENERATED = Named(
    "Generated",
    shape(
        "an answer, so far if it is a part of a stream",
        {"text": text("absent with --skip-tokenizer-init"), "index": integer("whose answer it is, in a stream of several")},
        output_ids=IDS,
        meta_info=META,
    ),
)
GENERATED_ONE_OR_MANY = one_of(GENERATED, list_of(GENERATED), says="a list for a list of prompts, or for n above 1")
SCORES = Named(
    "ChoiceScores",
    shape(
        choices=list_of(
            shape(
                "",
                {"unconditional_token_logprobs": list_of(ENTRY)},
                token_logprobs=list_of(ENTRY),
                normalized=number("mean log probability of its tokens"),
            )
        ),
        meta_info=shape(
            id=text(), prompt_tokens=integer(), scored_from=integer(), cached_tokens=integer(), total_tokens=integer()
        ),
    ),
)
VECTOR = Named("Vector", shape(embedding=list_of(number()), meta_info=META))
VECTORS = one_of(VECTOR, list_of(VECTOR))
TOKENS = Named(
    "Tokens",
    shape(
        tokens=one_of(IDS, list_of(IDS)),
        count=one_of(integer(), list_of(integer())),
        max_model_len=integer("the longest sequence, in tokens"),
    ),
)
DETOKENIZED = Named("Detokenized", shape(text=one_of(text(), TEXTS), prompt=one_of(text(), TEXTS)))
CALLS = Named(
    "ParsedCalls",
    shape(
        normal_text=text("what is no call"),
        calls=list_of(shape(tool_index=integer(), name=text(), parameters=text("JSON"))),
    ),
)
REASONING = Named("SeparatedReasoning", shape(reasoning_text=text(), text=text()))
MODEL_INFO = Named(
    "ModelInfo",
    shape(
        model_path=text(),
        tokenizer_path=nullable(text("the model's, if it is not said")),
        served_model_name=text(),
        is_generation=truth("it generates; otherwise it embeds"),
        architectures=TEXTS,
        context_length=integer("the longest sequence, in tokens"),
        has_chat_template=truth(),
        has_image_understanding=truth(),
    ),
)
SERVER_INFO = Named(
    "ServerInfo",
    shape(
        "the flags, without secrets, and how things stand",
        version=text(),
        status=text(),
        max_total_num_tokens=integer("size of the KV pool"),
        max_running_requests=integer(),
        model=free(),
        internal_states=list_of(free()),
    ),
)
LOAD = list_of(
    shape(
        dp_rank=integer(),
        num_reqs=integer("running and waiting"),
        num_waiting_reqs=integer(),
        num_tokens=integer("in the KV pool"),
    )
)
LOADS = Named("Loads", shape(version=text(), dp_rank_count=integer(), loads=list_of(free())))
HEALTH = shape(status=text("starting, ready, broken or draining", enum=["starting", "ready", "broken", "draining"]))
TOKENIZER_INFO = Named(
    "TokenizerInfo",
    shape(eos_token=nullable(text()), bos_token=nullable(text()), chat_template=nullable(text()), vocab_size=integer()),
)
DONE = shape(message=text(), status=text())
SESSION = {
    "id": text("what /open_session gave"),
    "rid": text("the request that it follows; without it: the beginning"),
    "offset": integer("of what stood before, only so many tokens; from the end if negative"),
    "replace": truth("forget all that followed before"),
    "drop_previous_output": truth("follow the prompt of that request, without its answer"),
}


def sampling_schema() -> Schema:
    """The schema of `sampling_params`, made from the struct that they become."""
    whole = msgspec.json.schema(SamplingParams)
    properties = {}
    for name, schema in whole["$defs"]["SamplingParams"]["properties"].items():
        if schema.get("type") == "array":  # a single one may stand alone
            schema = {"anyOf": [schema["items"], {key: value for key, value in schema.items() if key != "default"}]}
        properties[name] = {**nullable(schema), "description": SAYS[name]}
    properties["sampling_seed"] = nullable(integer("another name of seed"))
    return Named("SamplingParams", {**free("how tokens are chosen"), "properties": properties, "additionalProperties": False})
