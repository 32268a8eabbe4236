"""Chat templates that would take for ever, or all memory, in a sandbox without limits. Each may end in any way, soon."""

from __future__ import annotations

import json
import time
from pathlib import Path

DOUBLING = [
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}",
    "{% set ns = namespace(x=[1, 2]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=('a',)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set ns.x = m(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ''.join([ns.x, ns.x]) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', 'aaaaaaaaaaaaaaaa') %}{% endfor %}",
    "{% set ns = namespace(x='&') %}{% for i in range(60) %}{% set ns.x = ns.x | e | string %}{% endfor %}",
    "{% set x0 = 'ab' %}"
    + "".join(f"{{% set x{i + 1} = x{i} + x{i} %}}" for i in range(60)),
    "{% set x0 = ['a'] %}" + "".join(f"{{% set x{i + 1} = [x{i}, x{i}] %}}" for i in range(60)) + "{{ x60 == x59 }}",
    "{% set ns = namespace(x=namespace()) %}{% for i in range(60) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "{% set x = [1] * 1000 %}{% set y = [x] * 1000 %}{% set z = [y] * 1000 %}{{ [z] * 1000 }}",
]  # fmt: skip

WIDE = [
    "{{ '%999999999d' | format(1) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%-0999999999.3f' % 1.5 }}",
    "{{ '%.999999999f' % 1.5 }}",
    "{{ '%(a)999999999d' % {'a': 1} }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=999999999) }}",
    "{{ '{a:>999999999}'.format_map({'a': 1}) }}",
    "{{ 'x' | center(999999999) }}",
    "{{ 'x'.center(999999999) }}",
    "{{ 'x'.ljust(999999999) }}",
    "{{ 'x'.rjust(width) if width else 'x'.rjust(10 ** 9) }}",
    "{{ '1'.zfill(2147483647) }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10000000000 * 'x' }}",
    "{{ [0] * 10000000000 }}",
    "{{ 'a\\nb' | indent(999999999) }}",
    "{{ ('a\\n' * 100000) | indent('x' * 100000) }}",
    "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
    "{{ [1] | batch(999999999, 0) | list }}",
    "{{ [1] | slice(999999999) | list }}",
    "{{ lipsum(999999999) }}",
    "{{ 1.5 | round(999999999) }}",
    "{{ (5).to_bytes(999999999, 'big') }}",
    "{{ 9 ** 99999999 }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "{{ ('x' * 1000000) | replace('', 'y' * 1000000) }}",
    "{{ (['x' * 1000000] * 1000000) | join('y' * 1000000) }}",
    "{{ ('y' * 1000000).join(['x' * 1000000] * 1000000) }}",
    "{{ (['x' * 1000000] * 1000000) | tojson }}",
    "{{ ['x' * 1000000] * 1000000 }}",
    "{{ ('%s' * 500000) % (('x' * 1000000,) * 500000) }}",
    "{{ ('{0}' * 500000).format('x' * 1000000) }}",
    "{{ {'a': [1] * 100000} | tojson(indent=999999) }}",
    "{{ {'a': [1] * 100000} | tojson(indent='x' * 1000000) }}",
    "{{ {'a': [1] * 100000} | tojson(separators=('x' * 1000000, ':')) }}",
    "{{ ('a ' * 500000) | wordwrap(1, wrapstring='x' * 1000000) }}",
    "{{ ('a' * 1000000).translate({97: 'x' * 1000000}) }}",
    "{{ strftime_now('%999999999d') }}",
]

LONG = [
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) if range(99999) | select('eq', -1) | list %}{% endfor %}",
    "{% for a in range(99999) %}{% if range(99999) | map('string') | join | length %}{% endif %}{% endfor %}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{% if n %}{% call f(n - 1) %}{% endcall %}{% call f(n - 1) %}{% endcall %}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [[[[1]]]] recursive %}{{ loop([[[[1]]]]) }}{% endfor %}",
    "{% for x in [0, 1] recursive %}{{ loop([0, 1]) }}{% endfor %}",
    "{{ ([[0]] * 1000000) | sum(start=[]) | length }}",
    "{% for i in range(99999) %}{{ ('a' * 1000000) | upper | lower | title | length }}{% endfor %}",
    "{{ ('<!--' * 250000) | striptags }}",
    "{{ ('http://a.' * 100000) | urlize }}",
    "{{ ('a' * 1000000) in ('a' * 1000000 + 'b') * 1 }}",
    "{{ ['a' * 1000] * 100000 | unique | list | length }}",
    "{% for i in range(99999) %}" + "{{ messages | tojson }}" * 1000 + "{% endfor %}",
]  # fmt: skip

DEEP = [
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 20000 + "]" * 20000 + " }}",
    "{{ " + "not " * 20000 + "1 }}",
    "{{ " + "-" * 20000 + "1 }}",
    "{{ 1" + " + 1" * 20000 + " }}",
    "{{ 'a'" + " ~ 'a'" * 20000 + " }}",
    "{{ x" + ".y" * 20000 + " }}",
    "{{ 'x'" + " | upper" * 5000 + " }}",
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "{% if x %}" + "{% elif x %}" * 20000 + "{% endif %}",
    "{{ 1 if " * 3000 + "1" + " }}",
    "{#" * 100000,
    "{{ '" + "\\\\" * 100000,
    "{% raw %}" * 20000,
    "{{ " + "9" * 100000 + " }}",
    "{{ x }}" * 30000,
    "\ud800{{ 1 }}",
    "\0{{ 1 }}",
    "x" * 10_000_000,
]

ALL = {
    **{f"doubling {i}": source for i, source in enumerate(DOUBLING)},
    **{f"wide {i}": source for i, source in enumerate(WIDE)},
}
ALL |= {**{f"long {i}": source for i, source in enumerate(LONG)}, **{f"deep {i}": source for i, source in enumerate(DEEP)}}


def main() -> None:
    """Loads and renders each, in sight of the trial at load time and hidden from it, and prints what that took."""
    from sglang.srt.errors import SglangError
    from sglang.srt.server.tokenization import chat_template

    chat_template.TRIAL_SECONDS = chat_template.MAX_RENDER_SECONDS = 0.3
    messages = [{"role": "user", "content": "Hi"}]
    spent, wrong = {}, {}
    for name, source in ALL.items():
        begin = time.thread_time()
        for text in (source, f"{{% if messages[0].content == 'Hi' %}}{source}{{% endif %}}"):
            try:
                chat_template.ChatTemplate(text).render({"messages": messages})
            except SglangError as error:
                if not 0 < len(str(error)) < 500:
                    wrong[name] = str(error)[:200]
            except BaseException as error:  # noqa: BLE001
                wrong[name] = repr(error)[:200]
        spent[name] = round(time.thread_time() - begin, 3)
    status = Path("/proc/self/status").read_text()  # what getrusage tells is at least what the parent had
    peak = int(status.partition("VmHWM:")[2].split()[0]) >> 10
    print(json.dumps({"cpu_seconds": spent, "wrong": wrong, "peak_mb": peak}))


if __name__ == "__main__":
    main()
