"""Chat templates: the dialect, the sandbox, and the limits."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sglang.srt.errors import ConfigError, RequestError, UnsupportedError
from sglang.srt.server.tokenization import chat_template as module
from sglang.srt.server.tokenization.chat_template import ChatTemplate
from sglang.srt.server.tokenization.named_templates import BUILTIN_TEMPLATES
from sglang.srt.server.tokenization.template_forms import ContentForm
from tests.conftest import ROOT
from tests.server import hostile_templates

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]


def render(source: str, **variables: Any) -> str:
    return ChatTemplate(source).render({"messages": MESSAGES} | variables)


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


def test_hostile_templates_end_soon_in_little_memory() -> None:
    """All of them in its own process, whose memory can be told."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.server.hostile_templates"], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)
    assert not told["wrong"]
    assert told["peak_mb"] < 800, "templates may make texts of 256 MB in all"
    assert max(told["cpu_seconds"].values()) < 20, told["cpu_seconds"]


@pytest.mark.parametrize("name", ["doubling 0", "wide 0", "wide 6", "wide 9", "long 1", "long 10"])
def test_hostile_templates_are_refused_at_load(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.3)
    with pytest.raises(ConfigError, match="chat template 'default' cannot be used: "):
        ChatTemplate(hostile_templates.ALL[name])


def test_a_long_conversation_is_no_attack() -> None:
    turns = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "x" * 10_000}] * 100
    source = (
        "{% set ns = namespace(text='', all=[]) %}{% for m in messages %}{% set ns.text = ns.text + m.content | trim + '\\n' %}"
        "{% set ns.all = ns.all + [m.content[:10] | upper] %}{% endfor %}{{ ns.text }}{{ ns.all | join(',') }}{{ messages | tojson }}"
    )
    text = ChatTemplate(source).render({"messages": turns})
    assert len(text) > 4_000_000 and text.count("XXXXXXXXXX") == 100


def test_what_templates_do_every_day() -> None:
    assert render("{{ '%05d|%s' % (42, 'a') }}{{ '%.2f' | format(1.5) }}{{ '{:>5}'.format('x') }}") == "00042|a1.50    x"
    assert render("{{ [1, 2, 3] | sum }}{{ messages | sum(attribute='n', start=1) }}", messages=[{"n": 2}]) == "63"
    assert (
        render("{{ ['a', 'b'] | join(', ') }}{{ messages | map(attribute='role') | join('/') }}") == "a, buser/assistant/user"
    )
    assert render("{{ 'a\nb' | indent(2) }}{{ 'x' ~ 1 ~ none }}{{ 7 % 2 }}{{ [1] * 3 }}") == "a\n  bx1None1[1, 1, 1]"
    assert (
        render("{% set x %}a{% for i in range(3) %}{{ i }}{% endfor %}{% endset %}{{ x }}{{ 'b' + 'c' + x + 'd' }}")
        == "a012bca012d"
    )
    assert render("{{ messages[0].at | default(9999999999) }}{{ {9999999999: 1}.get(9999999999) }}") == "99999999991"
    assert render("{{ ('%d' | format(9999999999)) if false else '%d' % 9999999999 }}") == "9999999999"
    assert render("{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f('x') + f('y') }}{{ 1 + 2 + 3 - 1 }}") == "<x><y>5"


LOOP = "{% for m in messages %}"


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (LOOP + "{{ m['content'] }}{% endfor %}", ContentForm()),
        (LOOP + "{% for part in m['content'] %}{{ part.text }}{% endfor %}{% endfor %}", ContentForm(False, True, True)),
        (
            LOOP + "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}{% endfor %}",
            ContentForm(False, True, True),
        ),
        (LOOP + "{% set c = m.content %}{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}", ContentForm(False, True, True)),
        (
            LOOP + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text or '<image>' }}"
            "{% endfor %}{% endif %}{% endfor %}",
            ContentForm(True, True, True, frozenset({"image", "video"})),
        ),
        (LOOP + "{{ m.content if m.content is string else m.content[0].text }}{% endfor %}", ContentForm(True, True)),
        (LOOP + "{{ m.content[0].text }}{% endfor %}", ContentForm(False, True)),
        (LOOP + "{{ m.content | tojson }}{% endfor %}", ContentForm()),
        (BUILTIN_TEMPLATES["llama-3"], ContentForm()),
        ("{{ raise_exception('no') }}", ContentForm()),
    ],
)
def test_what_a_role_takes_is_found_out(source: str, form: ContentForm) -> None:
    forms = ChatTemplate(source).forms
    assert forms.of_role("user") == forms.of_role("assistant") == form


def test_each_role_has_a_form_of_its_own() -> None:
    source = LOOP + (
        "{% if m.role == 'user' %}{% for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content + '|' }}{% endif %}"
        "{% endfor %}"
    )
    template = ChatTemplate(source)
    assert template.forms.of_role("user") == ContentForm(False, True, True)
    assert template.forms.of_role("system") == template.forms.of_role("function") == ContentForm()
    said = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    assert template.render({"messages": template.fitted(said, {})}) == "system|userassistant|"
    seen = [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]
    assert template.render({"messages": template.fitted(seen, {"image": "<i>"})}) == "a <i>|"
    with pytest.raises(UnsupportedError, match="text only"):
        template.fitted(seen, {})


def test_tools_are_shown_or_not() -> None:
    calls = LOOP + "{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}{% endfor %}"
    as_text = LOOP + "{% for c in m.tool_calls %}{{ 'f ' + c.function.arguments }}{% endfor %}{% endfor %}"
    shown = "{% for t in tools %}{{ t.function.name }}{% endfor %}"
    for source, tools, called, objects in (
        (LOOP + "{{ m.content }}{{ m.tools }}{% endfor %}", False, False, True),
        (shown, True, False, True),
        (calls, False, True, False),
        (as_text, False, True, False),
        (shown + as_text.replace("c.function.arguments", "c.function.arguments | tojson"), True, True, True),
    ):
        forms = ChatTemplate(source).forms
        assert (forms.tools, forms.calls, forms.argument_objects) == (tools, called, objects), source
