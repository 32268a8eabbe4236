"""What a chat request has the model read: messages and tools as the model's own template writes them, as ids or as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sglang.common.reasoning import ReasoningFormat
from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import note_ignored
from sglang.srt.server.multimodal.inputs import MediaInput
from sglang.srt.server.openai.messages import parse_messages
from sglang.srt.server.openai.protocol import ChatRequest, parse_request
from sglang.srt.server.openai.sampling import has_format, sampling_params
from sglang.srt.server.openai.tools import ToolPlan, plan_tools, tell_calls, tell_tools
from sglang.srt.server.parsers.tool_calls import call_format, format_of_template
from sglang.srt.server.tokenization.chat_template import ChatTemplate
from sglang.srt.server.tokenization.joined_messages import encode_joined
from sglang.srt.server.tokenization.template_forms import MediaToken
from sglang.srt.server.tokenization.tokenizer import Tokenizer, check_asked
from sglang.srt.server.tokenizer_manager import TokenizerManager

NO_EFFORT = "none"
MAX_RENDERED_CHARS = 1 << 20
"""of users' messages that are rendered without being generated from, however short the context is"""
_THINKING_SWITCHES = ("enable_thinking", "thinking")
"""names that templates have for it"""


@dataclass(frozen=True)
class ChatOptions:
    """What a server has settled about chats. `context_len`: tokens of a prompt and its answer. `defaults`: sampling parameters that a request leaves open. `tool_parser`: name of
    the format of tool calls. `media_tokens`: of each type of media that may be among the messages.
    `may_cut`: prompts that are too long lose their end."""

    tokenizer: Tokenizer
    served_name: str
    defaults: dict[str, Any]
    max_chars: int
    context_len: int
    tool_parser: str = "generic"
    reasoning: ReasoningFormat | None = None
    media_tokens: Mapping[str, MediaToken] = field(default_factory=dict)
    may_cut: bool = False


def chat_options(
    manager: TokenizerManager,
    tool_parser: str | None,
    served_name: str = "",
    defaults: dict[str, Any] | None = None,
    reasoning: ReasoningFormat | None = None,
) -> ChatOptions:
    """`tool_parser`: None for the one that the chat template gives away. Raises RequestError if there is no tokenizer."""
    tokenizer = manager.need_tokenizer()
    template = tokenizer.chat_template(with_tools=True).source if tokenizer.has_chat_template else ""
    return ChatOptions(
        tokenizer=tokenizer,
        served_name=served_name,
        defaults=defaults or {},
        max_chars=manager.max_chars,
        context_len=manager.context_len,
        tool_parser=tool_parser or format_of_template(template),
        reasoning=reasoning,
        media_tokens=manager.media.media_tokens if manager.media is not None else {},
        may_cut=manager.http.allow_auto_truncate,
    )


@dataclass(frozen=True)
class ChatPrompt:
    """What the template is given. `media`: the images and videos among the messages, in their order. `continued`: what the last
    message has said so far, if more of it is wanted. `asks`: whether the prompt ends by asking for the next turn."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    variables: dict[str, Any]
    media: list[MediaInput]
    continued: str | None
    asks: bool

    def ids(self, options: ChatOptions, joins: bool = False) -> list[int]:
        """`joins`: messages that the template refuses are joined to fewer."""
        encode = partial(
            options.tokenizer.encode_chat,
            tools=self.tools or None,
            continue_final_message=self.continued is not None,
            generation_prompt=self.asks,
            template_variables=self.variables,
            max_chars=options.max_chars,
            may_cut=options.may_cut,
            media_tokens=options.media_tokens,
        )
        return encode_joined(encode, self.messages) if joins else encode(self.messages)

    def text(self, options: ChatOptions) -> str:
        check_asked(self.messages, max(options.max_chars, MAX_RENDERED_CHARS))
        return options.tokenizer.chat_text(
            self.messages,
            tools=self.tools or None,
            continue_final_message=self.continued is not None,
            generation_prompt=self.asks,
            template_variables=self.variables,
            media_tokens=options.media_tokens,
        )


def make_prompt(request: ChatRequest, plan: ToolPlan, options: ChatOptions) -> ChatPrompt:
    """Raises RequestError for messages that are none, or that the model cannot read."""
    template = options.tokenizer.chat_template(with_tools=bool(plan.shown))
    if plan.strict:
        _check_strict(template, options.tool_parser)
    media: list[MediaInput] = []
    messages = parse_messages(request.messages, template, media if options.media_tokens else None)
    continued = _text_to_continue(messages[-1]) if request.continue_final_message else None
    tools = plan.shown
    if not (template.forms.tools or template.forms.calls):
        messages = tell_calls(messages)
    if tools and not template.forms.tools:
        how = call_format(plan.parser or options.tool_parser).how
        messages, tools = tell_tools(messages, tools, how), []
    asks = request.add_generation_prompt is not False and continued is None
    return ChatPrompt(messages, tools, _template_variables(request, template), media, continued, asks)


def render_chat(body: dict[str, Any], options: ChatOptions) -> dict[str, Any]:
    """The body of a chat request -> {"text"}: what it has the model read. Any role's message may be continued. Raises RequestError."""
    request = parse_request(ChatRequest, body)
    sampling = sampling_params(request, None, options.defaults)
    plan = plan_tools(
        request.tools,
        request.tool_choice,
        request.parallel_tool_calls,
        options.tool_parser,
        sampling,
        has_format=has_format(request),
    )
    return {"text": make_prompt(request, plan, options).text(options)}


def _template_variables(request: ChatRequest, template: ChatTemplate) -> dict[str, Any]:
    """What the template is told besides messages and tools. Effort and verbosity are hints: a template that does not know them
    is not told, but that there is to be no effort means no reasoning."""
    variables: dict[str, Any] = {}
    for name, value in (("reasoning_effort", request.reasoning_effort), ("verbosity", request.verbosity)):
        if value is not None and template.mentions(name):
            variables[name] = value
        elif value not in (None, NO_EFFORT):
            note_ignored(f"{name}: this model's chat template does not know it")
    if request.reasoning_effort == NO_EFFORT:
        variables |= dict.fromkeys(_THINKING_SWITCHES, False)
    return variables | (request.chat_template_kwargs or {})


def _check_strict(template: ChatTemplate, format_name: str) -> None:
    """Raises UnsupportedError if the template has the model write calls in another way than the one that can be constrained."""
    for sign in call_format(format_name).foreign:
        if template.mentions(sign):
            raise UnsupportedError(
                f"strict tools with tool_choice auto: this model writes calls with {sign}, which cannot be constrained; leave strict "
                "out, or use tool_choice required",
                "tools",
            )


def _text_to_continue(message: dict[str, Any]) -> str:
    """What the last message has said so far. Raises RequestError where no more text can follow."""
    if message.get("tool_calls"):
        raise RequestError("the last message ends with a call, which cannot be continued: its result must follow", "messages")
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
