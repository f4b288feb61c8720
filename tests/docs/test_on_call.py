"""The live page in a real browser, before a real server: what docs/guide/on-call.md shows and says."""

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, expect, sync_playwright

from tests.processes import Process
from tests.programs import path_of

pytestmark = pytest.mark.needs_program("chromium")

SOON = 15_000  # milliseconds, for whatever is awaited
SECRET = "secret-of-the-back-end"  # noqa: S105 - no real one
MARKUP = "<img src=x onerror=alert(1)>"
TOKEN = "Bearer night"  # noqa: S105 - as above

APP = f"""
import asyncio
import os
from dataclasses import asdict

from fastapi import FastAPI

from connectionpools_fastapi import ConnectionPool, install_pools

is_up = True
held = []


async def create():
    if not is_up:
        raise ConnectionRefusedError({SECRET!r})
    return object()


options = {{"create": create, "check": lambda _: is_up, "blocking": False, "timeout": 60}}
db = ConnectionPool(limit=4, name="db", **options)
cache = ConnectionPool(create=object, limit=100, name="cache", blocking=False)


def is_allowed(request):
    return os.environ.get("TOKEN") in (None, request.headers.get("authorization"))


def may_act(request):
    return "CONTROL" in os.environ


app = FastAPI()
install_pools(app, db, cache, authorize=is_allowed, control=may_act)


async def hold(lease):
    async with lease:
        await asyncio.Event().wait()


async def lease_once():
    async with db.lease(timeout=0.1):
        pass


@app.get("/hold/{{callers}}")
async def take(callers: int, holder: str):
    held.extend(asyncio.create_task(hold(db.lease(holder=holder))) for _ in range(callers))


async def work(pool, seconds):
    async with pool.lease(holder="GET /items/{{id}}"):
        await asyncio.sleep(seconds)


@app.get("/traffic/{{callers}}")
async def traffic(callers: int):
    await asyncio.gather(*(work(pool, number % 9 / 300) for number in range(callers) for pool in (db, cache)))


@app.get("/give-back")
async def give_back():
    while held:
        held.pop().cancel()


@app.get("/lose")
async def lose():
    await asyncio.gather(*(lease_once() for _ in range(3)), return_exceptions=True)


@app.get("/back-end/{{state}}")
async def back_end(state: str):
    global is_up
    is_up = state == "up"
    if not is_up:
        db.expire()


@app.get("/stats")
async def stats():
    return asdict(db.stats())
"""


class Service(Process):
    """The application above, under uvicorn."""

    def __init__(self, directory: Path, *options: str, **environment: str) -> None:
        (directory / "app.py").write_text(APP)
        command = ("uvicorn", "--host", "127.0.0.1", "--port", "0", *options, "app:app")
        super().__init__(directory, command, environment)
        workers = int(options[-1]) if options else 1
        self.wait_until(lambda: self.log.count("Application startup complete") == workers and "http://" in self.log)
        (self.address,) = re.findall(r"http://127\.0\.0\.1:\d+", self.log)

    def ask(self, path: str) -> Any:
        return httpx.get(self.address + path, trust_env=False).raise_for_status().json()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        program = path_of("chromium")
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])  # as root it needs that
        yield found
        found.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page of a service; at the end, nothing may have been blocked or have failed in it."""
    wrong: list[str] = []
    contexts = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:  # such as a 403
            wrong.append(message.text)

    def visit(service: Service, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SOON)
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on(
            "request", lambda request: None if request.url.startswith(service.address) else wrong.append(request.url)
        )
        page.goto(service.address + "/pool/")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def squat(service: Service, number: int) -> socket.socket:
    """Be a worker of a service that never answers."""
    (name,) = re.findall(rf"@(connectionpools_\S+\.{service.process.pid}\..*/)0", Path("/proc/net/unix").read_text())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}{number}")
    listener.listen()
    return listener


def see(page: Page, verdict: str) -> None:
    expect(page.locator("#verdict")).to_have_text(verdict, timeout=SOON)


def card(page: Page, name: str = "db") -> Any:
    return page.locator(f"#pool-{name}")


def picture_of(page: Page, name: str) -> None:
    """Keep what the page looks like after a moment, if a person asks for that: the pictures in docs/."""
    if "SCREENSHOTS" in os.environ:
        page.wait_for_timeout(12_000)
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")


def assert_shows(page: Page, stats: dict[str, Any]) -> None:
    """Check that the page shows the numbers of `stats()`."""
    db = card(page)
    expect(db.locator("[data-is=used]")).to_have_text(f"{stats['taken']} of {stats['limit']}", timeout=SOON)
    expect(db.locator("[data-is=waiting]")).to_have_text(str(stats["waiting"]), timeout=SOON)
    for state, number in (("leased", stats["taken"]), ("free", stats["free"])):
        expect(db.locator(f"[data-state={state}] b")).to_have_text(str(number), timeout=SOON)
    totals = {
        name: stats[name] for name in ("acquires", "releases", "timeouts", "creates", "cleans", "create_failures")
    }
    for kind in ("refusals", "discards"):
        totals |= {f"{kind}: {reason}": number for reason, number in stats[kind].items()}
    for name, number in totals.items():
        expect(db.locator(f"[data-total='{name}'] dd")).to_have_text(str(number), timeout=SOON)


def test_page_tells_a_pool_that_is_exhausted_and_recovers(service: Service, open_page: Callable[..., Page]) -> None:
    page = open_page(service, viewport={"width": 1180, "height": 840})
    see(page, "Both pools are fine.")
    service.ask("/traffic/100")
    service.ask("/hold/7?holder=GET%20/reports/{year}")
    see(page, "db: exhausted. The other pool is fine.")
    expect(page).to_have_title(re.compile("^db: exhausted"))
    assert_shows(page, service.ask("/stats"))
    picture_of(page, "exhausted")
    service.ask("/give-back")
    see(page, "Both pools are fine.")
    assert_shows(page, service.ask("/stats"))
    assert card(page).locator(".events .turn").all_inner_texts()[0].endswith("fine")


def test_name_of_a_holder_is_shown_as_text(service: Service, open_page: Callable[..., Page]) -> None:
    page = open_page(service)
    service.ask(f"/hold/1?holder={MARKUP}")
    expect(card(page).locator(".leases tbody td:first-child")).to_have_text(MARKUP, timeout=SOON)
    assert page.locator("img").count() == 0


def test_page_tells_a_back_end_that_is_down_and_up_again(service: Service, open_page: Callable[..., Page]) -> None:
    page = open_page(service, viewport={"width": 1180, "height": 840}, color_scheme="dark")
    see(page, "Both pools are fine.")
    service.ask("/traffic/100")
    service.ask("/back-end/down")
    see(page, "db: back-end down. The other pool is fine.")
    expect(card(page).locator("[data-is=reason]")).to_contain_text("ConnectionRefusedError")
    service.ask("/lose")
    expect(card(page).locator(".events")).to_contain_text("create failed with ConnectionRefusedError")
    picture_of(page, "down")
    assert SECRET not in page.content()
    service.ask("/back-end/up")
    see(page, "Both pools are fine.")
    expect(card(page).locator(".events")).to_contain_text("back-end up")


def test_verdict_alone_is_live_and_silent_while_nothing_changes(
    service: Service, open_page: Callable[..., Page]
) -> None:
    page = open_page(service)
    see(page, "Both pools are fine.")
    assert page.locator("[aria-live], [role=status], [role=alert]").count() == 1
    changes = page.evaluate(
        """async () => {
            let changes = 0, pictures = 0, done;
            new MutationObserver((all) => changes += all.length).observe(
                document.getElementById("verdict"), {childList: true, characterData: true, subtree: true});
            const three = new Promise((resolve) => done = resolve);
            new MutationObserver(() => ++pictures === 3 && done()).observe(
                document.getElementById("news"), {childList: true, characterData: true, subtree: true});
            await three;
            return changes;
        }"""
    )
    assert changes == 0


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_page_is_as_wide_as_its_screen(service: Service, open_page: Callable[..., Page], width: int) -> None:
    page = open_page(service, viewport={"width": width, "height": 800}, color_scheme="dark")
    service.ask("/hold/5?holder=GET%20/a/rather/long/route/{with}/{parameters}/that/fits/nowhere")
    see(page, "db: exhausted. The other pool is fine.")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"


def test_keyboard_reaches_all_that_can_be_used(service: Service, open_page: Callable[..., Page]) -> None:
    page = open_page(service)
    see(page, "Both pools are fine.")
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert reached == ["Skip to the pools", "dbFine", "cacheFine", *["All numbers since the start"] * 2]
    page.keyboard.press("Enter")
    assert card(page, "cache").locator("details").get_attribute("open") is not None


def test_header_is_asked_for_and_never_in_an_address(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with Service(tmp_path, TOKEN=TOKEN) as service:
        page = open_page(service)
        see(page, "Not authorized.")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_label("Authorization header").fill("Bearer day")
        page.keyboard.press("Enter")
        see(page, "This header was not accepted.")
        page.get_by_label("Authorization header").fill(TOKEN)
        page.get_by_role("button").click()
        see(page, "Both pools are fine.")
        assert page.locator("#token").is_hidden()
        assert set(asked) == {service.address + "/pool/stream"}


def test_page_shows_all_workers(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with Service(tmp_path, "--workers", "2") as service:
        page = open_page(service)
        expect(page.locator("#news")).to_contain_text("2 workers", timeout=SOON)
        expect(card(page).locator("[data-is=used]")).to_have_text("0 of 8", timeout=SOON)
        service.ask("/hold/5?holder=GET%20/slow")
        see(page, "db: exhausted. The other pool is fine.")
        expect(card(page).locator("[data-is=reason]")).to_contain_text("in 1 of 2 workers")


def test_server_stops_beside_an_open_page(service: Service, open_page: Callable[..., Page]) -> None:
    page = open_page(service)
    see(page, "Both pools are fine.")
    began = time.monotonic()
    service.stop()
    assert time.monotonic() - began < 10  # not the 20 s of a whole stream
    see(page, "The service does not answer.")


# --- the buttons ----------------------------------------------------------------------------------


def button(page: Page, action: str, name: str = "db") -> Any:
    return card(page, name).locator(f"[data-action={action}]")


def press(page: Page, action: str, name: str = "db") -> None:
    """Press a button, and confirm."""
    button(page, action, name).click()
    page.locator("#question [type=submit]").click()


def outcome(page: Page, text: str) -> None:
    expect(page.locator("#outcome")).to_have_text(text, timeout=SOON)


def test_page_has_no_buttons_without_control(service: Service, open_page: Callable[..., Page]) -> None:
    page = open_page(service)
    see(page, "Both pools are fine.")
    expect(card(page).locator(".control")).to_be_hidden()
    order = 'fetch("control", {method: "POST", headers: {"content-type": "application/json"}, body: "{}"})'
    assert page.evaluate(f"{order}.then((answer) => answer.status)") == 403


def test_button_acts_after_a_confirmation_by_keyboard_alone(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with Service(tmp_path, CONTROL="yes", TOKEN=TOKEN) as service:
        page = open_page(service, viewport={"width": 1180, "height": 840})
        page.get_by_label("Authorization header").fill(TOKEN)
        page.keyboard.press("Enter")
        see(page, "Both pools are fine.")
        button(page, "suspend").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog", name="Suspend db?")).to_be_visible()
        expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        page.keyboard.press("Escape")
        expect(button(page, "suspend")).to_be_focused()
        assert "asked" not in service.log
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        outcome(page, "Done.")
        expect(page.get_by_role("button", name="Close")).to_be_focused()
        page.keyboard.press("Enter")
        see(page, "db: suspended. The other pool is fine.")
        expect(button(page, "resume")).to_be_focused(timeout=SOON)
        expect(button(page, "suspend")).to_be_hidden()
        press(page, "resume")
        outcome(page, "Done.")
        page.keyboard.press("Escape")
        see(page, "Both pools are fine.")
        expect(card(page).locator(".events")).to_contain_text("resumed by you")
        assert service.log.count("a request asked to") == 2
        assert TOKEN not in service.log


def test_button_acts_in_all_workers(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with Service(tmp_path, "--workers", "2", CONTROL="yes") as service:
        page = open_page(service, viewport={"width": 1180, "height": 840})
        expect(card(page).locator("[data-is=used]")).to_have_text("0 of 8", timeout=SOON)
        service.ask("/traffic/100")
        button(page, "resize").click()
        limit = page.get_by_label("Limit of each worker")
        expect(limit).to_have_value("4")
        for wrong in ("0", "1.5", "10001", ""):
            limit.fill(wrong)
            page.keyboard.press("Enter")
            assert page.evaluate("document.querySelector('#limit').validity.valid") is False
        limit.fill("7")
        expect(page.locator("#together")).to_have_text("14 in all workers")
        picture_of(page, "control")
        page.keyboard.press("Enter")
        outcome(page, "Done in both workers.")
        page.keyboard.press("Escape")
        expect(card(page).locator("[data-is=used]")).to_have_text("0 of 14", timeout=SOON)
        with squat(service, 7):
            press(page, "suspend")
            outcome(page, "Done in 2 of 3 workers. Worker 7: the worker does not answer.")
        page.get_by_role("button", name="Try again").click()
        outcome(page, "Done in both workers.")
        assert service.log.count("a request asked to") == 3


def test_question_is_as_wide_as_its_screen(tmp_path: Path, open_page: Callable[..., Page]) -> None:
    with Service(tmp_path, CONTROL="yes") as service:
        for width in (320, 1280):
            page = open_page(service, viewport={"width": width, "height": 640}, color_scheme="dark", has_touch=True)
            see(page, "Both pools are fine.")
            button(page, "resize").tap()
            box = page.locator("#question").bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            ground = page.evaluate("getComputedStyle(document.getElementById('question')).backgroundColor")
            assert ground == "rgb(27, 30, 34)"


FORM = """([target, order]) => {
    const form = Object.assign(document.createElement("form"), {action: target, method: "POST", enctype: "text/plain"});
    const [name, value] = order.split("=");
    form.append(Object.assign(document.createElement("input"), {name, value}));
    document.body.append(form);
    form.submit();
}"""


def test_page_of_another_site_cannot_act(tmp_path: Path, browser: Browser) -> None:
    with Service(tmp_path, CONTROL="yes") as service:
        page = browser.new_context().new_page()
        page.goto(service.address.replace("127.0.0.1", "localhost") + "/stats")
        target = f"{service.address}/pool/control"
        answers: list[int] = []
        page.on("response", lambda response: answers.append(response.status) if response.url == target else None)
        send = "([target, body, options]) => fetch(target, {method: 'POST', body, ...options})"
        order = '{"pool": "db", "action": "suspend"}'
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate(send, [target, order, {"headers": {"content-type": "application/json"}}])
        page.evaluate(send, [target, order, {"mode": "no-cors"}])
        with page.expect_navigation():
            page.evaluate(FORM, [target, '{"pool": "db", "action": "suspend", "x": "="}'])
        page.context.close()
        assert set(answers) <= {403, 405}
        assert 403 in answers
        assert service.ask("/stats")["status"] == "open"
        assert "asked" not in service.log
