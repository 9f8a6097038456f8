"""What a browser lets a foreign page, and a foreign word, do to the lab. The watch on every page sees that the page
itself breaks no rule it sets."""

from browser_steps import Server, go, open_page
from playwright.sync_api import Browser, Page, expect

from app.services import PRESETS, Lab

SEND = """([url, body]) => fetch(url, {method: 'POST', mode: 'no-cors', body, headers: {'Content-Type': 'text/plain'}})
  .then((answer) => answer.type, (error) => String(error))"""
INJECT = """() => new Promise((resolve) => {
  window.ran = [];
  const broken = [];
  document.addEventListener('securitypolicyviolation', (event) => broken.push(event.effectiveDirective));
  const host = document.createElement('div');
  host.innerHTML = '<img src="x" onerror="window.ran.push(1)"><a id="bad" href="javascript:window.ran.push(2)">x</a>';
  document.body.append(host);
  const script = document.createElement('script');
  script.textContent = 'window.ran.push(3)';
  document.body.append(script);
  const outside = document.createElement('script');
  outside.src = 'https://evil.example/x.js';
  document.body.append(outside);
  const frame = document.createElement('iframe');
  frame.src = 'https://evil.example/';
  document.body.append(frame);
  document.getElementById('bad').click();
  fetch('https://evil.example/').catch(() => {});
  setTimeout(() => resolve([window.ran, broken]), 1000);
})"""


def test_another_page_starts_nothing(browser: Browser, server: Server) -> None:
    page = browser.new_context().new_page()
    page.goto("about:blank")  # a page with an origin of its own
    before = len(server.store.runs())
    url = f"{server.url}/gradio_api/call/start_alignment"
    answer = page.evaluate(SEND, [url, '{"data": ["sandbox-check", ["sft"]]}'])
    assert answer in ("opaque", "TypeError: Failed to fetch"), "it cannot even read what it is told"
    page.wait_for_timeout(500)
    assert len(server.store.runs()) == before
    page.context.close()


def test_words_that_got_in_run_nothing_and_send_nothing(browser: Browser, server: Server) -> None:
    page = browser.new_context().new_page()
    open_page(page, server.url)
    ran, broken = page.evaluate(INJECT)
    assert ran == []
    assert {"script-src-attr", "script-src-elem", "frame-src", "connect-src"} <= set(broken)
    page.context.close()


def test_no_other_site_shows_the_page_in_a_frame(browser: Browser, server: Server) -> None:
    page = browser.new_context().new_page()
    page.goto("about:blank")
    page.set_content(f'<iframe src="{server.url}"></iframe>')
    page.wait_for_timeout(1500)
    assert all(frame.query_selector("#rail") is None for frame in page.frames)
    page.context.close()


def test_the_list_of_endpoints_opens(browser: Browser, server: Server) -> None:
    page = browser.new_context().new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    open_page(page, server.url)
    page.get_by_role("button", name="Use via API").click()
    expect(page.get_by_text("/start_attack").first).to_be_visible()
    page.wait_for_timeout(500)
    assert [words for words in said if "Content Security Policy" in words] == []
    page.context.close()


def test_a_run_deleted_elsewhere_is_said_to_be_gone(page: Page, server: Server) -> None:
    run = Lab(server.home).store.create_run(PRESETS["sandbox-check"].config, "soon gone")
    open_page(page, f"{server.url}/?run={run}&step=2")
    expect(page.locator(".lab-run")).to_have_attribute("title", run)
    Lab(server.home).delete_run(run)
    go(page, 3)
    expect(page.get_by_test_id("toast-body")).to_contain_text("does not exist here (any more)")
    expect(page.locator(".lab-run")).to_have_text("no run open")
    page.wait_for_function("!new URL(location.href).searchParams.get('run')")
    expect(page.get_by_test_id("toast-body")).to_have_count(1)
    page.reload()
    expect(page.locator(".lab-run")).to_have_text("no run open")
