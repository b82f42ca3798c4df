"""The server's page in a browser: nothing that axe finds, images by mouse and keyboard, refusals as text. Needs the extra `browser` and chromium."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from image_files import encode, picture
from processes import LIMIT_S
from served import LIMITS, Echo, service
from starlette.types import ASGIApp, Receive, Scope, Send

from imgrec.serving.limits import Limits

pytestmark = pytest.mark.slow
Open = Callable[..., Any]
TOKEN = "0123456789abcdef"
ROOM = Limits(**{**vars(LIMITS), "max_pixels": 10**6, "max_body_bytes": 10**6, "body_timeout_s": LIMIT_S})


class Named(Echo):
    """Names that would be markup, were they not text."""

    def __init__(self) -> None:
        super().__init__("<b>cat</b>", adds="set")


def behind_prefix(app: ASGIApp, prefix: str) -> ASGIApp:
    """As a reverse proxy that takes the prefix off does."""

    async def stripped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith(f"{prefix}/")
            scope = {**scope, "path": scope["path"].removeprefix(prefix)}
        await app(scope, receive, send)

    return stripped


@pytest.fixture(scope="module", params=[(None, ""), (TOKEN, "/some/prefix")], ids=["open", "token behind a prefix"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    token, prefix = request.param
    app = behind_prefix(service(Named(), limits=ROOM, token=token).app(), prefix)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{prefix}/"
    server.should_exit = True
    thread.join()


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Open]:
    """opened(dark=..., width=...) is the page, in which no error and no request elsewhere is left unseen."""
    contexts, wrong = [], []
    origin = address.removesuffix("/some/prefix/")

    def open_page(*, dark: bool = False, width: int = 1200) -> Any:
        context = browser.new_context(color_scheme="dark" if dark else "light", viewport={"width": width, "height": 900})
        context.set_default_timeout(1000 * LIMIT_S)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda sent: wrong.append(sent.url) if not sent.url.startswith((address, f"blob:{origin}", "data:")) else None,
        )
        page.goto(address)
        if page.locator("#token").count():
            page.fill("#token", TOKEN)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    for name, size in (("first", 60), ("second", 40)):
        (tmp_path / f"{name}.png").write_bytes(encode(picture(size, size, 30), "PNG"))
    (tmp_path / "bad.png").write_bytes(b"hello")
    return [str(tmp_path / f"{name}.png") for name in ("first", "second", "bad")]


def answered(page: Any, count: int) -> Any:
    """The answers; the page's policy forbids Playwright's wait_for_function."""
    page.locator("#answers li :is(.first, .bad)").nth(count - 1).wait_for()
    return page.locator("#answers li")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing_before_and_after_answers(opened: Open, images: list[str], dark: bool, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'imgrec[browser]'")
    page = opened(dark=dark, width=width)
    for _ in range(2):
        result = axe.Axe().run(page)
        assert [(found["id"], [node["html"] for node in found["nodes"]]) for found in result.response["violations"]] == []
        page.set_input_files("#files", images)
        answered(page, 3)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_chosen_images_are_shown_with_their_classes_as_text(opened: Open, images: list[str]) -> None:
    page = opened()
    page.set_input_files("#files", images)
    items = answered(page, 3)
    texts = {item.locator("h3").inner_text(): item for item in items.all()}
    sizes = {Path(file).name: Path(file).stat().st_size for file in images}
    for name in ("first.png", "second.png"):
        assert texts[name].locator(".first").inner_text() == f"<b>cat</b> {sizes[name]}"
        assert texts[name].locator("dt").count() == 3
        assert texts[name].locator("dd").first.inner_text() == "50.0%"
        assert texts[name].locator("img").evaluate("(one) => one.complete && one.naturalWidth > 0")
    assert "no image file" in texts["bad.png"].locator(".bad").inner_text()
    assert texts["bad.png"].locator("img").count() == 0
    page.get_by_role("status").filter(has_text="3 images: 2 answered, 1 not.").wait_for()


def test_a_dropped_image_is_answered_and_said(opened: Open, images: list[str]) -> None:
    page = opened()
    transfer = page.evaluate_handle(
        """(bytes) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"})); return data }""",
        list(Path(images[0]).read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    answered(page, 1)
    page.get_by_role("status").filter(has_text="dropped.png: <b>cat</b>").wait_for()
    assert page.locator("#files").evaluate("(field) => field.files[0].name") == "dropped.png"  # not 'No file chosen'


def test_figures_stay_beside_names_from_right_to_left(opened: Open, tmp_path: Path) -> None:
    """By where Chromium draws them: a figure is right of its name, and a mark of direction turns nothing."""
    page = opened()
    cat, dog = "\u05d7\u05ea\u05d5\u05dc", "\u05db\u05dc\u05d1"
    top = [{"class": cat, "probability": 0.75}, {"class": "\u202edog", "probability": 0.25}]
    answer = {"predictions": [{"class": cat, "probability": 0.75, "top": top, "set": [cat, dog]}]}
    page.route("**/predict*", lambda route: route.fulfill(json=answer))
    file = tmp_path / "\u202ea12.png"
    file.write_bytes(encode(picture(0, 60, 30), "PNG"))
    page.set_input_files("#files", [str(file)])
    item = answered(page, 1)
    places = """(node, parts) => parts.map((part) => { const range = document.createRange(), at = node.firstChild.data.indexOf(part);
        range.setStart(node.firstChild, at); range.setEnd(node.firstChild, at + part.length); return range.getBoundingClientRect().x })"""
    for where, parts in ((page.locator("#said"), ["a12", ".png", cat, "75.0"]), (item.locator(".soft"), ["Set", cat, dog])):
        found = where.evaluate(places, parts)
        assert found == sorted(found)
    assert item.locator("dt").all_inner_texts() == [f"\u2068{cat}\u2069", "?dog"]


def test_the_same_file_can_be_chosen_again(opened: Open, images: list[str]) -> None:
    page = opened()
    for count in (1, 2):
        with page.expect_file_chooser() as chooser:
            page.locator("#files").click()
        chooser.value.set_files(images[:1])
        assert answered(page, count).count() == count


def test_the_file_button_is_reached_by_tab_and_has_a_name(opened: Open) -> None:
    page = opened()
    page.locator("h1").click()
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "files":
            break
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.get_by_label("Drop images here, or choose them").get_attribute("id") == "files"


def test_a_server_that_is_gone_is_said(opened: Open, images: list[str]) -> None:
    page = opened()
    page.route("**/predict*", lambda route: route.abort())
    page.set_input_files("#files", images[:1])
    assert "does not answer" in answered(page, 1).locator(".bad").inner_text()


def test_a_refusal_by_a_proxy_is_said_with_its_status(opened: Open, images: list[str]) -> None:
    """As of nginx, whose limit on bodies is 1 MB; its answer is HTML."""
    page = opened()
    page.route("**/predict*", lambda route: route.fulfill(status=413, content_type="text/html", body="<html>Too large</html>"))
    page.set_input_files("#files", images[:1])
    assert "413" in answered(page, 1).locator(".bad").inner_text()


def test_the_page_knows_its_address_also_with_a_query_and_a_section(opened: Open, address: str) -> None:
    page = opened()
    for place in ("", "#typed", "?a=b#try"):
        page.goto(address + place)
        page.reload()
        assert page.locator("[data-origin]").inner_text() == address.removesuffix("/")
    page.get_by_role("link", name="openapi.json").click()
    assert page.url == f"{address}openapi.json"
    assert page.locator("body").inner_text().startswith('{"openapi":')


def test_a_missing_token_is_asked_for_on_the_page(opened: Open, images: list[str]) -> None:
    page = opened()
    if page.locator("#token").count():
        page.fill("#token", "")
        page.set_input_files("#files", images[:1])
        assert answered(page, 1).locator(".bad").inner_text() == "Enter the token of this server above."
