"""Chat templates: the dialect, the sandbox, and the limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sglang.srt.errors import ConfigError, RequestError
from sglang.srt.server.tokenization import chat_template as module
from sglang.srt.server.tokenization.chat_template import BUILTIN_TEMPLATES, ChatTemplate, named_template

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render({"messages": MESSAGES, **variables})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}\n    {{- m['role'][0] }}\n    {% endfor %}", "u\na\nu\n"),
        ("{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.content }},{% endfor %}", "Hi,Bye,"),
        ("{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.content }},{% endfor %}", "Hi,"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hi!"),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro say(x) %}<{{ x }}>{% endmacro %}{{ say('a') }}{{ say('b') }}", "<a><b>"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for k in range(3) recursive %}{{ k }}{% endfor %}", "012"),
        ("{{ unknown_name }}|{{ '-' * 3 }}", "|---"),
    ],
)
def test_the_dialect(source: str, expected: str) -> None:
    assert render(source) == expected


def test_a_template_can_refuse() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% set x = namespace.__init__.__globals__ %}{{ x }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ ('%c' % 0).format.__globals__ }}",
        "{{ messages | attr('__class__') | attr('__mro__') }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str) -> None:
    try:
        text = render(source)
    except RequestError:
        return
    assert "object" not in text and "uid=" not in text and "class" not in text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ 'a' * 999999999 }}",
        "{{ 9 ** 99999999 }}",
        "{% for a in range(99999) %}{{ 'xxxxxxxxxx' * 1000 }}{% endfor %}",
    ],
)
def test_templates_cannot_run_for_ever(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(module, "MAX_RENDER_SECONDS", 0.3)
    with pytest.raises(RequestError, match="chat template"):
        render(source)


@pytest.mark.parametrize(
    ("source", "wants_parts"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", False),
        ("{% for m in messages %}{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}", True),
        (BUILTIN_TEMPLATES["llama-3"], False),
    ],
)  # fmt: skip
def test_the_content_format_is_seen(source: str, wants_parts: bool) -> None:
    assert ChatTemplate(source).wants_parts is wants_parts


@pytest.mark.parametrize("name", sorted(BUILTIN_TEMPLATES))
def test_builtin_templates_render_a_conversation(name: str) -> None:
    template = ChatTemplate(named_template(name))
    names = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    text = template.render({"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES], **names})
    positions = [text.index(word) for word in ("Be brief.", "Hi", "Hello", "Bye")]
    assert positions == sorted(positions)


def test_template_files(tmp_path: Path) -> None:
    jinja, as_json = tmp_path / "a.jinja", tmp_path / "b.json"
    jinja.write_text("x{{ messages[0].content }}")
    as_json.write_text('{"chat_template": "y"}')
    assert named_template(str(jinja)) == "x{{ messages[0].content }}"
    assert named_template(str(as_json)) == "y"
    as_json.write_text("{}")
    for wrong in (str(as_json), str(tmp_path / "none"), "no-such-name"):
        with pytest.raises(ConfigError):
            named_template(wrong)
