"""The native API (`/generate` and others) as a backend, over HTTP or in this process."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from sglang.lang.backend.base import BaseBackend, Delta, Generation, Meta, Prompt
from sglang.lang.backend.choice_scoring import score_by_generate
from sglang.lang.chat_template import ChatTemplate, get_chat_template_by_model_path, ordered_content
from sglang.lang.choices import ChoicesDecision
from sglang.lang.errors import BackendError, BadReplyError, RequestRefusedError, ServerError, UnsupportedFeatureError
from sglang.lang.ir import Select
from sglang.lang.sampling import to_native
from sglang.lang.settings import global_config

_GROWING = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


class NativeBackend(BaseBackend):
    """The native API on two methods of a subclass: `post` and `stream_replies`."""

    constraints = frozenset({"regex", "json_schema", "ebnf", "structural_tag"})
    caches_prefixes = True

    def __init__(self, chat_template: ChatTemplate | None = None, renders: bool = False) -> None:
        """`renders`: the server renders conversations, with the model's own template."""
        super().__init__(chat_template)
        self._can_score_choices = True
        self._renders = renders
        self.caches_prefixes = not renders

    async def post(self, path: str, payload: Any) -> Any:
        """The reply of `path` to `payload`. Raises BackendError."""
        raise NotImplementedError

    def stream_replies(self, payload: Meta) -> AsyncGenerator[Meta, None]:
        """The replies of a streaming /generate. Raises BackendError, also for a stream that breaks off."""
        raise NotImplementedError

    async def _are_pieces_disjoint(self) -> bool:
        """Whether streamed texts are pieces; by default each is the whole text so far."""
        return False

    # --- conversations ------------------------------------------------------------------------------------------------------

    async def _rendered(self, prompt: Prompt) -> Prompt:
        """The prompt with the text that the model's template makes of its messages. Raises BackendError, and
        UnsupportedFeatureError for images beside text that stands outside of all roles."""
        is_chat = prompt.role is not None or any(turn["role"] is not None for turn in prompt.turns)
        if not self._renders or not is_chat:
            return prompt
        is_loose = prompt.role is None and bool(prompt.text[prompt.role_start :].strip())
        if is_loose or any(turn["role"] is None for turn in prompt.turns):
            if prompt.images:
                raise UnsupportedFeatureError(self.name, "text outside of roles beside images", "put all text into messages")
            warnings.warn(
                "this model's chat template has no place for text outside of roles: the prompt only resembles it",
                stacklevel=2,
            )
            return prompt
        reply = await self.post("/apply_chat_template", _conversation(prompt, self.chat_template))
        if not isinstance(reply, dict) or not isinstance(reply.get("text"), str):
            raise BadReplyError("the server's answer to /apply_chat_template has no text")
        return replace(prompt, text=_with_own_end(reply["text"], prompt))

    # --- generating --------------------------------------------------------------------------------------------------------

    def _payload(self, prompt: Prompt, options: Mapping[str, Any], rid: str | None) -> dict[str, Any]:
        params, beside = to_native(options)
        params["skip_special_tokens"] = global_config.skip_special_tokens_in_output
        params["spaces_between_special_tokens"] = global_config.spaces_between_special_tokens_in_out
        payload = {"text": prompt.text, "sampling_params": params, **beside}
        if prompt.images:
            payload["image_data"] = _image_data(prompt)
        if rid is not None and params["n"] == 1:
            payload["rid"] = rid
        return payload

    async def generate(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> Generation:
        if _wants_only_next_logprobs(options):
            return _without_token(await self.generate(prompt, {**_SCORE_PROMPT, **options, **_ONE_TOKEN}, rid))
        reply = await self.post("/generate", self._payload(await self._rendered(prompt), options, rid))
        replies = reply if isinstance(reply, list) else [reply]
        wanted = options.get("n") or 1
        if len(replies) != wanted:
            raise BadReplyError(f"the server sent {len(replies)} samples where {wanted} were asked for")
        return Generation([_text_of(one) for one in replies], [_meta_of(one) for one in replies])

    async def generate_stream(self, prompt: Prompt, options: Mapping[str, Any], rid: str) -> AsyncGenerator[Delta, None]:
        if _wants_only_next_logprobs(options):
            whole = await self.generate(prompt, options, rid)
            for i, (text, meta) in enumerate(zip(whole.texts, whole.metas, strict=True)):
                yield Delta(text, meta, i)
            return
        disjoint = await self._are_pieces_disjoint()
        payload = {**self._payload(await self._rendered(prompt), options, rid), "stream": True}
        samples: dict[int, _Sample] = {}
        async with aclosing(self.stream_replies(payload)) as replies:
            async for reply in replies:
                index = int(reply.get("index", 0))
                yield samples.setdefault(index, _Sample(index, disjoint)).take(reply)

    async def cache_prefix(self, prompt: Prompt) -> None:
        prompt = await self._rendered(prompt)
        payload: dict[str, Any] = {"text": prompt.text, "sampling_params": {"max_new_tokens": 0}}
        if prompt.images:
            payload["image_data"] = _image_data(prompt)
        await self.post("/generate", payload)

    # --- choosing ----------------------------------------------------------------------------------------------------------

    async def select(self, prompt: Prompt, select: Select, rid: str) -> ChoicesDecision:
        unconditional = select.method.requires_unconditional_logprobs
        prompt = await self._rendered(prompt)
        scores = await self._score_in_one_request(prompt, select, unconditional) if not prompt.images else None
        if scores is None:
            images = {"image_data": _image_data(prompt)} if prompt.images else {}
            scores = await score_by_generate(self.post, prompt.text, select.choices, unconditional, images, _lora_path(select))
            self._can_score_choices = self._can_score_choices and bool(prompt.images)
        return select.method(
            choices=select.choices,
            normalized_prompt_logprobs=[score["normalized"] for score in scores],
            input_token_logprobs=[score["token_logprobs"] for score in scores],
            output_token_logprobs=[score.get("output_token_logprobs", []) for score in scores],
            unconditional_token_logprobs=(
                [score["unconditional_token_logprobs"] for score in scores] if unconditional else None
            ),
        )

    async def _score_in_one_request(self, prompt: Prompt, select: Select, unconditional: bool) -> Sequence[Meta] | None:
        """None where the server lacks /score_choices, or, as far as its status says, the adapter."""
        if not self._can_score_choices:
            return None
        payload = {"text": prompt.text, "choices": list(select.choices), "unconditional": unconditional, **_lora_path(select)}
        try:
            reply = await self.post("/score_choices", payload)
        except RequestRefusedError as error:
            if error.status_code not in (404, 405):
                raise
            return None
        scores = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(scores, list) or len(scores) != len(select.choices):
            raise BadReplyError("the server's answer to /score_choices does not match the choices")
        return scores


def _lora_path(select: Select) -> dict[str, str]:
    return {"lora_path": select.lora} if select.lora else {}


_ONE_TOKEN = {"max_new_tokens": 1, "min_new_tokens": 0, "stop": (), "stop_token_ids": ()}
_SCORE_PROMPT = {"logprob_start_len": 0}
"""as servers read a request for no token and log probabilities"""


def _wants_only_next_logprobs(options: Mapping[str, Any]) -> bool:
    """No token is wanted, and the alternatives for the first are. Servers know them only once they generate one."""
    scores = options.get("return_logprob") and options.get("top_logprobs_num")
    return bool(scores) and options.get("max_new_tokens") == 0


def _without_token(one: Generation) -> Generation:
    """The result of a gen of one token as that of none: what was scored stays."""
    nothing = {"completion_tokens": 0, "finish_reason": {"type": "length", "length": 0}, "output_token_logprobs": []}
    return Generation([""] * len(one.texts), [{**meta, **nothing} for meta in one.metas])


class _Sample:
    """One sample of a stream: makes new text and whole meta data of whichever way the server streams."""

    def __init__(self, index: int, disjoint: bool) -> None:
        self._index = index
        self._disjoint = disjoint
        self._len = 0
        self._logprobs: dict[str, list[Any]] = {}

    def take(self, reply: Meta) -> Delta:
        text, meta = _text_of(reply), _meta_of(reply)
        if not self._disjoint:
            text, self._len = text[self._len :], max(self._len, len(text))
            return Delta(text, meta, self._index)
        for key in _GROWING:
            if meta.get(key):
                self._logprobs[key] = [*self._logprobs.get(key, ()), *meta[key]]
        return Delta(text, {**meta, **self._logprobs}, self._index)


def _with_own_end(text: str, prompt: Prompt) -> str:
    """White space at the end of what is to go on is the program's, also where the template strips contents."""
    if prompt.role is None or not prompt.role_text.strip():
        return text
    return text.rstrip() + prompt.role_text[len(prompt.role_text.rstrip()) :]


def _conversation(prompt: Prompt, template: ChatTemplate) -> dict[str, Any]:
    """The body of /apply_chat_template."""
    turns = list(prompt.turns)
    if prompt.role is None:
        return {"messages": turns, "add_generation_prompt": False}
    if prompt.role == "assistant" and not prompt.role_text.strip():
        return {"messages": turns}
    places = [place - prompt.role_start for place in prompt.places]
    content = ordered_content(prompt.role_text, places, template)
    return {"messages": [*turns, {"role": prompt.role, "content": content}], "continue_final_message": True}


def needs_server_rendering(chat_roles: Any) -> bool:
    """Whether the model's template cannot be split into turns, so that only the server can render a conversation."""
    return isinstance(chat_roles, dict) and "roles" in chat_roles and chat_roles["roles"] is None


def template_of_model(model_path: str, chat_roles: Any) -> ChatTemplate:
    """The model's own turns where the runtime reports them ({"default_system_prompt", "roles": {role: [prefix, suffix]}, "stop",
    "image_token"}), and otherwise the table's for a model of that name."""
    known = get_chat_template_by_model_path(model_path)
    if needs_server_rendering(chat_roles):  # the server renders what is sent; this is for `text()`
        image_token = chat_roles.get("image_token") or known.image_token
        return replace(known, default_system_prompt=None, stop_str=(), image_token=image_token)
    if not isinstance(chat_roles, dict) or not isinstance(chat_roles.get("roles"), dict):
        return known
    return ChatTemplate(
        name="model",
        default_system_prompt=chat_roles.get("default_system_prompt"),
        role_prefix_and_suffix={role: (str(pair[0]), str(pair[1])) for role, pair in chat_roles["roles"].items()},
        stop_str=tuple(chat_roles.get("stop") or ()),
        image_token=chat_roles.get("image_token") or known.image_token,
    )


def _image_data(prompt: Prompt) -> Any:
    """One image as a string, as servers of the original expect it; several as a list."""
    data = [image.data for image in prompt.images]
    return data[0] if len(data) == 1 else data


def request_failure(message: str, status: Any) -> BackendError:
    status = status if isinstance(status, int) else None
    kind = RequestRefusedError if status is not None and 400 <= status < 500 else ServerError
    return kind(f"the server ended the request: {message}", status_code=status, server_message=message)


def _text_of(reply: Any) -> str:
    if not isinstance(reply, dict) or not isinstance(reply.get("text"), str):
        raise BadReplyError("the server's answer has no text; is it a server of the native /generate API?")
    text: str = reply["text"]
    return text


def _meta_of(reply: Meta) -> Meta:
    """The meta data. Raises for a request that the server aborted: half a text is not a result."""
    meta: Meta = reply.get("meta_info") or {}
    reason = meta.get("finish_reason")
    if isinstance(reason, dict) and reason.get("type") == "abort":
        raise request_failure(str(reason.get("message") or "aborted"), reason.get("status_code"))
    return meta
