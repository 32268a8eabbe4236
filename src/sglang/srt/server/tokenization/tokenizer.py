"""Text to token ids and back, for one model.

Built on `tokenizers` alone: from a Hugging Face folder (tokenizer.json, tokenizer_config.json, chat template files) or from
the metadata of a GGUF file. Three ways to encode, by who wrote the text:

    encode            a prompt of the caller's own: special tokens are read as such
    encode_ordinary   text that must stay text
    encode_chat       messages through the model's template: the template's special tokens count, those in messages do not
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import tokenizers

from sglang.srt.checkpoint.resolve import default_cache_dir, find_files
from sglang.srt.config import ModelFiles, TextOptions
from sglang.srt.errors import ContextLengthError, RequestError
from sglang.srt.process.heap import release_freed_memory
from sglang.srt.server.shared_ints import SharedInts
from sglang.srt.server.tokenization.chat_template import ChatTemplate, SpecialText, map_strings
from sglang.srt.server.tokenization.cutting import PIECE_CHARS, Cutter
from sglang.srt.server.tokenization.model_files import TextFacts, checked, is_panic, read_folder, read_gguf, with_template
from sglang.srt.server.tokenization.template_forms import MediaToken
from sglang.srt.server.tokenization.token_bytes import drops_leading_space, token_table
from sglang.srt.vocabulary import Vocabulary

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDEF)]
_END_MARK = "\ufdef"
"""noncharacters: valid in text, never part of real text. The last stands for the end of a message that is to be continued"""
NEEDED_MARKS = 3
"""for names of special tokens, images and videos"""
LONG_TEXT = 10_000
"""characters above which others may run meanwhile"""
PIECE_IDS = 16 << 10
"""of a sequence that are made text at once"""


class Tokenizer:
    """One model's tokenizer, vocabulary and chat template. Safe to use from several threads at once."""

    def __init__(self, core: tokenizers.Tokenizer, facts: TextFacts, core_json: str | None = None) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core
        self._json = core_json if core_json is not None else core.to_str()
        self._added: tuple[list[int], list[int]] | None = None
        self._plain: tokenizers.Tokenizer | None = None
        self._plain_inside: tokenizers.Tokenizer | None = None
        added = core.get_added_tokens_decoder()
        decoder = _component(core.decoder)
        self._drops_leading_space = drops_leading_space(decoder)
        special = frozenset(i for i, token in added.items() if token.special)
        self._special_names = frozenset(added[i].content for i in special)
        self._special_text = SpecialText(self._special_names)
        self.names = facts.names
        self.sentences, self.chat_stops = facts.sentences, facts.stops
        self._bos_id = facts.bos_token_id
        self._bos_text = added[facts.bos_token_id].content if facts.bos_token_id in added else None
        self._prepend_bos = bool(facts.add_bos) and core.post_processor is None and facts.bos_token_id is not None
        self._templates = {name: ChatTemplate(source, name) for name, source in facts.templates.items()}
        self.vocabulary = Vocabulary(
            token_bytes=token_table(core.get_vocab(with_added_tokens=False), decoder, {i: t.content for i, t in added.items()}),
            special_ids=special,
            eos_token_ids=facts.eos_token_ids | self._turn_end(special),
            bos_token_id=facts.bos_token_id,
            tokenizer_json=self._json,
        )

    # --- text to ids --------------------------------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a prompt, special tokens recognized. A beginning-of-sequence token that the text already has is not doubled."""
        if add_special_tokens and self._bos_text is not None and text.startswith(self._bos_text):
            add_special_tokens = False
        ids = self._ids(self._core, text)
        if add_special_tokens:
            before, after = self._around()
            ids = [*before, *ids, *after]
        if add_special_tokens and self._prepend_bos:
            assert self._bos_id is not None
            ids.insert(0, self._bos_id)
        return ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of each, on all cores."""
        return [ids for piece in self.encode_pieces(texts, add_special_tokens) for ids in piece]

    def encode_pieces(self, texts: Iterable[str], add_special_tokens: bool = True) -> Iterator[list[list[int]]]:
        """`encode_batch` of some texts at a time: while it is made, a token takes hundreds of bytes, which are given back."""
        size, piece, shared = 0, list[str](), SharedInts()
        for text in texts:
            if len(text) > PIECE_CHARS:
                yield self._encode_piece(piece, add_special_tokens)
                yield [self.encode(text, add_special_tokens)]
                size, piece = 0, []
                continue
            size += len(text)
            piece.append(text)
            if size > PIECE_CHARS:
                yield [shared.share(ids) for ids in self._encode_piece(piece, add_special_tokens)]
                release_freed_memory()
                size, piece = 0, []
        if piece:
            yield self._encode_piece(piece, add_special_tokens)

    def _encode_piece(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        bos = self._bos_text
        if self._prepend_bos or (bos is not None and any(text.startswith(bos) for text in texts)):
            return [self.encode(text, add_special_tokens) for text in texts]
        try:
            return [e.ids for e in self._core.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)]
        except BaseException as error:
            if isinstance(error, (TypeError, UnicodeEncodeError)) or is_panic(error):  # one is at fault: the error says so
                return [self.encode(text, add_special_tokens) for text in texts]
            raise

    def encode_pairs(self, pairs: Sequence[tuple[str, str]], max_len: int | None = None) -> list[tuple[list[int], int]]:
        """Ids of two texts as the model joins them, and where the second begins, 0 for models that do not mark it. Of a pair that has
        more than `max_len`, the longer text loses its end."""
        try:
            found = self._core.encode_batch(list(pairs))
        except BaseException as error:
            if not isinstance(error, (TypeError, UnicodeEncodeError)) and not is_panic(error):
                raise
            for pair in pairs:
                for text in pair:
                    self.encode(text)  # one is at fault: the error says so
            raise
        fit = [
            e if max_len is None or len(e.ids) <= max_len else self._cut_pair(*pair, max_len)
            for e, pair in zip(found, pairs, strict=True)
        ]
        return [(e.ids, e.type_ids.index(1) if 1 in e.type_ids else 0) for e in fit]

    def _cut_pair(self, first: str, second: str, max_len: int) -> tokenizers.Encoding:
        a, b = (self._core.encode(text, add_special_tokens=False) for text in (first, second))
        room = max_len - self._core.num_special_tokens_to_add(is_pair=True)
        short, long = (a, b) if len(a.ids) <= len(b.ids) else (b, a)
        short.truncate(min(len(short.ids), room // 2))
        long.truncate(room - len(short.ids))
        return self._core.post_process(a, b)

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of text in which names of special tokens are only characters. Nothing is added."""
        if self._plain is None:
            self._plain = tokenizers.Tokenizer.from_str(self._json)
            self._plain.encode_special_tokens = True
        return self._ids(self._plain, text)

    def _encode_inside(self, text: str) -> list[int]:
        """`encode_ordinary` for text that does not stand at the beginning: no space is put before it."""
        if self._plain_inside is None:
            json_text = self._core.to_str()
            state = json_text.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
            if state == json_text:
                return self.encode_ordinary(text)
            self._plain_inside = tokenizers.Tokenizer.from_str(state)
            self._plain_inside.encode_special_tokens = True
        return self._ids(self._plain_inside, text)

    @staticmethod
    def _ids(core: tokenizers.Tokenizer, text: str) -> list[int]:
        """Ids of the text alone; of a long one piece by piece."""
        if len(text) <= PIECE_CHARS:
            return _plain_ids(core, text)
        shared, ids = SharedInts(), list[int]()
        for piece in _cutter(core).pieces(text):
            ids += shared.share(_plain_ids(core, piece))
            release_freed_memory()
        return ids

    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the model's post-processor adds before and after a text."""
        if self._added is None:
            inner, outer = _plain_ids(self._core, "a"), list(_encoding(self._core, "a", True).ids)
            at = next(i for i in range(len(outer)) if outer[i : i + len(inner)] == inner)
            self._added = outer[:at], outer[at + len(inner) :]
        return self._added

    # --- ids to text --------------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence."""
        decoder, parts = codecs.getincrementaldecoder("utf-8")("replace"), []
        for at in range(0, len(ids), PIECE_IDS):
            parts.append(decoder.decode(self.vocabulary.text_bytes(list(ids[at : at + PIECE_IDS]), skip_special_tokens)))
        text = "".join([*parts, decoder.decode(b"", final=True)])
        return text[1:] if self._drops_leading_space and text.startswith(" ") else text

    def token_text(self, token_id: int) -> str:
        """The text of one token, special or not; parts of characters are U+FFFD."""
        table = self.vocabulary.token_bytes
        return table[token_id].decode(errors="replace") if 0 <= token_id < len(table) else ""

    def token_id(self, text: str) -> int | None:
        """The id of the token that is spelled like this, special or not."""
        found: int | None = self._core.token_to_id(text)
        return found

    def is_special(self, text: str) -> bool:
        """Whether `text` is the name of a special token."""
        return text in self._special_names

    # --- chat ---------------------------------------------------------------------------------------------------------------

    def chat_template(self, with_tools: bool = False) -> ChatTemplate:
        """Raises RequestError if the model has none."""
        template = self._templates.get("tool_use") if with_tools else None
        template = template or self._templates.get("default")
        if template is None:
            raise RequestError("this model has no chat template: start the server with --chat-template, or use completions")
        return template

    @property
    def has_chat_template(self) -> bool:
        return "default" in self._templates

    def render_chat(self, messages: list[dict[str, Any]], *, generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt as text, for people and tests. `encode_chat` says what the variables are."""
        template = self.chat_template(bool(variables.get("tools")))
        return self._render(template, template.fitted(messages, {}), variables, generation_prompt)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        continue_final_message: bool = False,
        generation_prompt: bool = True,
        template_variables: dict[str, Any] | None = None,
        max_chars: int | None = None,
        may_cut: bool = False,
        media_tokens: Mapping[str, MediaToken] | None = None,
    ) -> list[int]:
        """Ids of the prompt that asks for the next turn (without `generation_prompt`, of the messages alone), or with
        `continue_final_message` for the rest of the last one, which is the assistant's.

        Contents are strings or lists of parts, whatever the template takes (template_forms.py). `media_tokens`: of each type of
        media; where the template does not show them itself, they are text of the messages.

        Raises RequestError if there is no template, it refuses the messages, or the prompt is longer than `max_chars` (with
        `may_cut` it loses its end instead, where that is possible).
        """
        if not may_cut:
            self.check_asked(messages, max_chars)
        variables: dict[str, Any] = {**(template_variables or {}), "tools": tools}
        template = self.chat_template(bool(tools))
        is_marked = self._special_text.occurs_in([messages, variables])
        mark, *free = _free_marks(messages, variables) if is_marked or media_tokens else _MARKS
        tokens = {kind: (own, token) for own, (kind, token) in zip(free, (media_tokens or {}).items(), strict=False)}
        if continue_final_message:
            _check_answer(messages[-1])
            messages = [*messages[:-1], _with_end_mark(messages[-1])]
        if is_marked:
            messages, variables = self._special_text.marked([messages, variables], mark)
        prompt = self._with_media(template, messages, variables, tokens, generation_prompt and not continue_final_message)
        prompt = _without_end(prompt, continue_final_message)
        if may_cut and not is_marked:
            prompt = prompt[:max_chars]
        self._check_size(len(prompt), max_chars)
        if is_marked:
            return self._encode_marked(prompt, mark)
        return self._ids(self._core, prompt)

    def check_asked(self, messages: list[dict[str, Any]], max_chars: int | None) -> None:
        """Refuses users' messages that cannot fit, before anything is made of them: templates leave out much, but none of these."""
        size = 0
        for message in messages:
            content = message.get("content") if message.get("role") == "user" else None
            if isinstance(content, str):
                size += len(content)
            elif isinstance(content, list):
                size += sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))
        self._check_size(size, max_chars)

    def _check_size(self, size: int, max_chars: int | None) -> None:
        """`max_chars` are those of a context full of the longest token: this many tokens there are at least."""
        if max_chars is not None and size > max_chars:
            longest = max(map(len, self.vocabulary.token_bytes))
            raise ContextLengthError("messages", -(-size // longest), max_chars // longest, is_least=True)

    def chat_text(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        continue_final_message: bool,
        generation_prompt: bool,
        template_variables: dict[str, Any],
        media_tokens: Mapping[str, MediaToken],
    ) -> str:
        """The prompt of `encode_chat` as text, in which names of special tokens are what they are wherever they stand. The message to
        continue may be anybody's."""
        variables = {**template_variables, "tools": tools}
        free = _free_marks(messages, variables) if media_tokens else []
        tokens = {kind: (own, token) for own, (kind, token) in zip(free, media_tokens.items(), strict=False)}
        if continue_final_message:
            messages = [*messages[:-1], _with_end_mark(messages[-1])]
        asks = generation_prompt and not continue_final_message
        prompt = self._with_media(self.chat_template(bool(tools)), messages, variables, tokens, asks)
        return _without_end(prompt, continue_final_message)

    def _with_media(
        self,
        template: ChatTemplate,
        messages: list[dict[str, Any]],
        variables: dict[str, Any],
        tokens: Mapping[str, tuple[str, MediaToken]],
        generation_prompt: bool,
    ) -> str:
        """The prompt with all images and videos: as the template shows them, or as text of the messages if it leaves one out.
        `tokens`: for each type, a mark that no message has, and what it stands for."""
        if not tokens:
            return self._render(template, template.fitted(messages, {}), variables, generation_prompt)
        wanted = _count_media(messages)
        marks = {kind: mark for kind, (mark, _) in tokens.items()}
        prompt = self._render(template, template.fitted(messages, marks), variables, generation_prompt)
        shown = {kind: prompt.count(mark) + prompt.count(token.placeholder) for kind, (mark, token) in tokens.items()}
        if wanted and any(shown[kind] != wanted[kind] for kind in tokens):
            prompt = self._render(template, template.fitted(messages, marks, as_text=True), variables, generation_prompt)
        for mark, token in tokens.values():
            prompt = prompt.replace(mark, token.text)
        return prompt

    def _render(
        self, template: ChatTemplate, messages: list[dict[str, Any]], variables: dict[str, Any], generation_prompt: bool
    ) -> str:
        # the caller's variables come first: none of them may stand in for the messages or a special token
        return template.render(
            {"tools": None, "documents": None, **variables, **self.names, "messages": messages}
            | {"add_generation_prompt": generation_prompt}
        )

    def _encode_marked(self, prompt: str, mark: str) -> list[int]:
        """Encodes with special tokens recognized, then replaces every stretch between them that has marks by its ids as
        plain text."""
        special = self.vocabulary.special_ids
        ids: list[int] = []
        stretch: list[int] = []
        start = 0

        def close(end: int) -> None:
            text = prompt[start:end]
            if mark not in text:
                ids.extend(stretch)
            else:
                plain = text.replace(mark, "")
                ids.extend(self._encode_inside(plain) if start else self.encode_ordinary(plain))
            stretch.clear()

        base = 0
        for piece in _cutter(self._core).pieces(prompt):
            encoding = _encoding(self._core, piece)
            for token_id, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if token_id not in special:
                    stretch.append(token_id)
                    continue
                close(base + begin)
                ids.append(token_id)
                start = base + end
            base += len(piece)
        close(len(prompt))
        return ids

    def _turn_end(self, special: frozenset[int]) -> set[int]:
        """The special tokens with which the chat template ends an answer, or gpt-oss a call: they end generation too."""
        if not self.has_chat_template:
            return set()
        mark = _MARKS[0]
        try:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
            text = self.render_chat(turns, generation_prompt=False)
        except RequestError:
            return set()  # it wants something that two plain turns do not have; the model's files name the end then
        _, found, rest = text.rpartition(mark)
        try:
            ids = _encoding(self._core, rest).ids if found else []
        except RequestError:
            return set()
        ids = [*ids[:1], *(i for i in special if text.count("<|channel|>") and self._core.id_to_token(i) == "<|call|>")]
        return {i for i in ids if i in special and i != self._bos_id}


def _cutter(core: tokenizers.Tokenizer) -> Cutter:
    return Cutter(core.pre_tokenizer, partial(_plain_ids, core))


def _plain_ids(core: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = _encoding(core, text).ids
    return ids


def _encoding(core: tokenizers.Tokenizer, text: str, add_special_tokens: bool = False) -> Any:
    """The encoding of one text. `encode` would keep the interpreter's lock for as long as it takes."""
    try:
        if len(text) > LONG_TEXT:
            return core.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        return core.encode(text, add_special_tokens=add_special_tokens)
    except (TypeError, UnicodeEncodeError) as error:  # what `tokenizers` says of lone surrogates
        raise RequestError("the text holds half a character (a lone surrogate)", "text") from error
    except BaseException as error:
        if is_panic(error):  # a pattern of the tokenizer's gave up on this text
            raise RequestError(f"the model's tokenizer fails on this text: {error}", "text") from error
        raise


def _component(part: Any) -> dict[str, Any] | None:
    """The JSON form of a part of a tokenizer."""
    return None if part is None else json.loads(part.__getstate__())


def _check_answer(message: dict[str, Any]) -> None:
    content = message.get("content")
    is_text = isinstance(content, str) or bool(content and content[-1].get("type") == "text")
    if message.get("role") != "assistant" or not is_text:
        raise RequestError("continue_final_message needs a last message by the assistant that ends in text", "messages")


def _with_end_mark(message: dict[str, Any]) -> dict[str, Any]:
    """The last message with a mark where it ends, so that everything the template adds after it can be cut off."""
    content = message.get("content")
    if not isinstance(content, list):
        return {**message, "content": f"{content}{_END_MARK} "}
    return {**message, "content": _with_texts_joined([*content, {"type": "text", "text": f"{_END_MARK} "}])}


def _with_texts_joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One part for texts that follow one another: they are pieces of an answer, and some templates would put line breaks between."""
    joined: list[dict[str, Any]] = []
    for part in parts:
        if joined and part["type"] == joined[-1]["type"] == "text":
            joined[-1] = {**part, "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _count_media(messages: list[dict[str, Any]]) -> Counter[str]:
    """Images and videos among the messages' parts, by type."""
    lists = (message["content"] for message in messages if isinstance(message.get("content"), list))
    return Counter(part["type"] for parts in lists for part in parts if part["type"] != "text")


def _without_end(prompt: str, cut: bool) -> str:
    if not cut:
        return prompt
    head, found, rest = prompt.rpartition(_END_MARK)
    if not found:
        raise RequestError("the chat template leaves out the last message, so it cannot be continued", "continue_final_message")
    # without the space, the template strips contents: it would have stripped the text's own end too
    return head if rest.startswith(" ") else head.rstrip()


def _free_marks(*values: Any) -> list[str]:
    """The marks that occur in none of the strings. Raises RequestError if someone wrote nearly all of them."""
    seen: set[str] = set()

    def note(text: str) -> str:
        seen.update(mark for mark in _MARKS if mark in text)
        return text

    map_strings(list(values), note)
    free = [mark for mark in _MARKS if mark not in seen]
    if len(free) < NEEDED_MARKS:
        raise RequestError("the messages contain all characters that would mark what is plain text in them", "messages")
    return free


def load_tokenizer(options: TextOptions, files: ModelFiles) -> Tokenizer:
    """The tokenizer of a folder or GGUF file, with `options.chat_template` in place of the model's own if given. Raises
    ModelError or ConfigError naming the file at fault."""
    if files.kind == "gguf":
        core, text, facts = read_gguf(files.path, default_cache_dir() / "tokenizers")
    else:
        core, text, facts = read_folder(files.path, default_cache_dir() / "tokenizers")
    if options.chat_template is not None:
        facts = with_template(options.chat_template, facts, core)
    with checked(str(files.path)):
        tokenizer = Tokenizer(core, facts, text)
        tokenizer.encode("a b")  # some faults show only when it runs
        return tokenizer


def open_tokenizer(options: TextOptions) -> Tokenizer | None:
    """`load_tokenizer` for whatever the options name; None if the server is to run without one."""
    if options.skip_tokenizer_init:
        return None
    return load_tokenizer(options, find_files(options))
