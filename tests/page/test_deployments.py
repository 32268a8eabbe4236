"""The page where servers are not alone on localhost: below a path, by TLS, and switched off."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
from playwright.sync_api import Browser, expect

from tests.conftest import start_server
from tests.page.conftest import Chat


def self_signed(folder: Path) -> tuple[Path, Path]:
    """(certificate, key) for localhost."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


def test_below_a_path_and_by_tls_with_a_key(browser: Browser, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    flags = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--root-path", "/llm", "--api-key", "k" * 20)
    running = start_server(tmp_path / "log", *flags)
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    try:
        url = running.url.replace("http://127.0.0.1", "https://localhost") + "/llm/"
        page.goto(url)
        page.get_by_label("Key", exact=True).fill("k" * 20)
        page.get_by_role("button", name="Use the key").click()
        expect(page.locator("dialog")).to_have_count(0)
        chat = Chat(page, url)
        chat.option(max_tokens=10)
        chat.say("Hello")
        assert chat.answer
        page.get_by_role("button", name="The request as code").click()
        expect(page.locator(".request-code")).to_contain_text(f"{url}v1/chat/completions")
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Machine").click()
        expect(page.locator(".figure", has_text="Running")).not_to_contain_text("–")
        page.get_by_role("link", name="Docs").click()
        expect(page.locator(".opblock-summary-path").first).to_be_visible()
        assert faults == []
        assert all(address.startswith((url, "data:")) for address in asked), asked
    finally:
        context.close()
        running.process.terminate()
        running.process.wait(30)


def test_there_may_be_no_page(tmp_path: Path) -> None:
    running = start_server(tmp_path / "log", "--no-page")
    try:
        with httpx.Client(base_url=running.url, trust_env=False) as client:
            for path in ("/", "/page/js/app.js", "/page/css/base.css", "/page/live"):
                assert client.get(path).status_code == 404, path
            assert client.post("/page/live", json={}).status_code == 404
            assert client.get("/docs").status_code == 200
            assert client.get("/page/vendor/docs/swagger-ui-bundle.js").status_code == 200
    finally:
        running.process.terminate()
        running.process.wait(30)
