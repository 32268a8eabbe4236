"""Messages and replies of Anthropic's API."""

from __future__ import annotations

from sglang.srt.server.openapi.schemas import Named, free, integer, list_of, nullable, one_of, shape, text

BLOCK = free("a block: text, image, thinking, tool_use, tool_result ...", type=text())
TURN = Named(
    "Turn",
    {
        **free(role=text(enum=["user", "assistant", "system"]), content=one_of(text(), list_of(BLOCK))),
        "required": ["role", "content"],
    },
)
MESSAGE_REPLY = Named(
    "Message",
    shape(
        id=text(),
        type=text(const="message"),
        role=text(const="assistant"),
        model=text(),
        content=list_of(BLOCK),
        stop_reason=nullable(text("end_turn, max_tokens, stop_sequence, tool_use or refusal")),
        stop_sequence=nullable(text()),
        usage=free(input_tokens=integer(), output_tokens=integer()),
    ),
)
MESSAGE_EVENT = Named("MessageEvent", shape(type=text("such as content_block_delta")))
COUNTED = shape(input_tokens=integer())
