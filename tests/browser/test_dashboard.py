"""The dashboard in a real browser: on a desk and on a phone, in the light and in the dark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from _support.shop import Shop
from _support.waiting import wait_until
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from once_core.events import emit

if TYPE_CHECKING:
    from conftest import Open

DESK, PHONE = 1280, 360


def fill(shop: Shop) -> None:
    """Something of everything a page can show."""
    shop.run("import_catalogue", 7, age=412, where="worker-1:2307:0123456789")
    shop.wait("sync_order", 1, age=300, refused=14)
    shop.run("sync_order", 2, age=3)
    shop.wait("sync_order", 2)
    shop.keep("send_newsletter", 3)
    key, task = shop.key("import_catalogue", 7), shop.guard("import_catalogue").task
    for ran in (40.0, 55.0, 90.0, 300.0):
        emit("finished", task=task, key=key, message_id="m1", reason="success", ran=ran)
    emit("slow", task=task, key=key, reason="it runs for longer than warn_after=120 s", ran=120.2)
    emit("duplicate", task=shop.guard("sync_order").task, key=shop.key("sync_order", 1),
         message_id="m2", reason="one waits to run", preview="order_id=1")  # fmt: skip


def wait_for_events(page: Page) -> None:
    """Until what was told is in the stream, and the overview counts it."""
    for _ in range(100):
        page.goto("/")
        if page.get_by_role("heading", name="Wants a look").count():
            return
    raise AssertionError("the overview shows no warning")


def paths(shop: Shop) -> list[str]:
    """Every page, in each of its forms."""
    running, free = shop.key("import_catalogue", 7), shop.key("sync_order", 99)
    return ["/", "/units", "/units?state=kept", "/units?task=nothing", "/events",
            "/events?only=warnings", "/explain", f"/unit?key={running}", f"/unit?key={free}",
            f"/release?key={running}", f"/release?key={shop.key('sync_order', 1)}"]  # fmt: skip


def assert_nothing_is_wrong(page: Page) -> None:
    """Axe finds nothing, contrasts included, and the page is no wider than its window."""
    found = Axe().run(page).response["violations"]
    told = [(each["id"], each["impact"], [n["html"] for n in each["nodes"]]) for each in found]
    width = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    assert (page.url, told) == (page.url, [])
    assert (page.url, width) == (page.url, 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_axe_finds_nothing(shop: Shop, visit: Open, width: int, scheme: str) -> None:
    """Every page has names, order and contrast for everybody, and fits its window."""
    fill(shop)
    page = visit(width=width, color_scheme=scheme)
    wait_for_events(page)

    for path in paths(shop):
        page.goto(path)
        assert_nothing_is_wrong(page)
    stranger = visit(width=width, color_scheme=scheme, is_signed_in=False)
    assert_nothing_is_wrong(stranger)
    page.goto("/explain")
    page.get_by_label("Task").select_option("shop.orders.sync_order")
    page.get_by_label("Arguments as JSON").fill("[1]")
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("status")).to_contain_text("one waits to run")
    assert_nothing_is_wrong(page)


def test_light_and_dark_are_two_looks(visit: Open) -> None:
    """The page follows what the system asks for."""

    def ground(scheme: str) -> str:
        page = visit(color_scheme=scheme, is_signed_in=False)
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    red, green, blue = map(int, re.findall(r"\d+", ground("dark")))
    assert max(red, green, blue) < 40
    red, green, blue = map(int, re.findall(r"\d+", ground("light")))
    assert min(red, green, blue) > 230


def focused(page: Page) -> str:
    """What has the focus, in the words of its text or label."""
    return str(
        page.evaluate(
            """() => {
              const it = document.activeElement;
              const label = it.labels?.length ? it.labels[0].textContent : it.textContent;
              return label.replace(/\\s+/g, " ").trim();
            }"""
        )
    )


def tab_to(page: Page, words: str) -> None:
    """Press the tab key until something with these words has the focus, and can be seen to."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if words in focused(page):
            style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style != "none"
            return
    raise AssertionError(f"80 tabs do not lead to {words!r}")


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_a_unit_is_freed_without_a_mouse(shop: Shop, visit: Open, width: int) -> None:
    """From the overview to the unit, to its release, to the box, to the button: keys alone."""
    holder = shop.run("import_catalogue", 7, age=412)
    page = visit(width=width)

    page.keyboard.press("Tab")
    assert focused(page) == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to(page, "shop.catalogue.import_catalogue")
    page.keyboard.press("Enter")
    page.wait_for_url("**/unit?*")
    tab_to(page, f"Release from {holder}")
    page.keyboard.press("Enter")
    page.wait_for_url("**/release?*")
    tab_to(page, "I know that its process is gone")
    page.keyboard.press("Space")
    tab_to(page, f"Release from {holder}")
    page.keyboard.press("Enter")

    expect(page.get_by_role("status")).to_have_text("It was freed.")
    assert page.url.endswith("&released=1")
    assert not shop.guard("import_catalogue").is_locked((7, "4111-1111-1111-1111"), {})


def test_a_running_one_needs_the_box(shop: Shop, visit: Open) -> None:
    """The browser itself does not send the form before the box is ticked."""
    shop.run("import_catalogue", 7)
    page = visit()
    page.goto(f"/release?key={shop.key('import_catalogue', 7)}")

    page.get_by_role("button", name="Release from").click()

    expect(page.get_by_role("checkbox", name="I know that its process is gone")).to_be_focused()
    assert shop.guard("import_catalogue").is_locked((7, "4111-1111-1111-1111"), {})


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_names_for_a_screen_reader(shop: Shop, visit: Open, width: int) -> None:
    """Landmarks, headings, tables, cells and pictures say what they are, also on a phone."""
    fill(shop)
    page = visit(width=width)
    wait_for_events(page)

    for role in ("banner", "main", "contentinfo"):
        expect(page.get_by_role(role)).to_have_count(1)
    navigation = page.get_by_role("navigation", name="Dashboard")
    names = navigation.get_by_role("link").all_inner_texts()
    assert names == ["Overview", "Units", "Events", "Explain a call"]
    current = navigation.get_by_role("link", name="Overview")
    expect(current).to_have_attribute("aria-current", "page")
    expect(page.get_by_role("region", name="Wants a look")).to_be_visible()
    expect(page.get_by_role("region", name="Tasks")).to_be_visible()
    expect(page.get_by_role("button", name="Pause refreshing")).to_have_attribute(
        "aria-pressed", "false"
    )
    chart = "Run times of 4 runs, from 40.0 s to 5 min 00 s: half of them under 1 min 30 s"
    expect(page.get_by_role("img", name=chart)).to_be_visible()
    table = page.get_by_role("table", name="The units of work that are held for longest")
    row = table.get_by_role("row").filter(has_text="import_catalogue")
    header = row.get_by_role("rowheader", name="shop.catalogue.import_catalogue")
    expect(header.get_by_role("link")).to_be_visible()
    expect(row.get_by_role("cell", name="running slow")).to_be_visible()
    expect(table.get_by_role("columnheader", name="Since")).to_have_count(1)

    page.goto("/events")
    expect(page.get_by_role("log", name="Recent events")).to_be_visible()
    expect(page.get_by_role("table", name="What happened, the newest first")).to_be_visible()
    expect(page.get_by_role("combobox", name="Task")).to_be_visible()


def test_an_event_shows_without_a_reload(shop: Shop, visit: Open) -> None:
    """What is told while somebody looks comes on top of the list; paused, it waits."""
    task, key = shop.guard("sync_order").task, shop.key("sync_order", 1)
    emit("claimed", task=task, key=key, message_id="first")
    page = visit()
    page.goto("/events")
    expect(page.get_by_role("status")).to_have_text("Live")
    page.evaluate("window.same = true")

    emit("duplicate", task=task, key=key, message_id="second", reason="one waits to run")
    rows = page.get_by_role("log").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("second")
    expect(rows.nth(1)).to_contain_text("one waits to run")
    page.get_by_role("button", name="Pause").click()
    emit("claimed", task=task, key=key, message_id="third")
    other = visit()
    other.goto("/events")
    expect(other.get_by_role("log")).to_contain_text("third")
    expect(page.get_by_role("log")).not_to_contain_text("third")
    page.get_by_role("button", name="Pause").click()

    expect(rows.nth(1)).to_contain_text("third")
    assert page.evaluate("window.same") is True


def test_the_list_of_events_filters_what_comes(shop: Shop, visit: Open) -> None:
    """With a filter only what fits it comes."""
    task, key = shop.guard("sync_order").task, shop.key("sync_order", 1)
    emit("slow", task=task, key=key, message_id="first")
    page = visit()
    wait_for_events(page)
    page.goto("/events")
    page.get_by_label("Show").select_option("warnings")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("status")).to_have_text("Live")

    emit("claimed", task=task, key=key, message_id="second")
    emit("lease_lost", task=task, key=key, message_id="third")

    expect(page.get_by_role("log")).to_contain_text("third")
    expect(page.get_by_role("log")).not_to_contain_text("second")


def test_the_overview_keeps_itself_fresh(shop: Shop, visit: Open) -> None:
    """It is fetched again while nobody is in the middle of it, and its pause is a button."""
    shop.wait("sync_order", 1)
    page = visit()
    page.clock.install()
    page.reload()
    table = page.get_by_role("table")
    expect(table).to_contain_text("order-1")

    shop.wait("sync_order", 2)

    def is_fetched() -> bool:
        page.clock.run_for(5000)
        return "order-2" in table.inner_text()

    wait_until(is_fetched, "the overview shows what came")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    table.get_by_role("link").first.focus()
    page.clock.run_for(60_000)
    assert asked == []
    page.get_by_role("button", name="Pause refreshing").focus()
    with page.expect_request("**/"):
        page.clock.run_for(5000)
    page.keyboard.press("Enter")
    asked.clear()
    page.clock.run_for(60_000)

    assert asked == []


def test_everything_works_without_scripts(shop: Shop, visit: Open) -> None:
    """A browser that runs none reads all pages, and frees a unit."""
    fill(shop)
    page = visit(java_script_enabled=False)
    wait_for_events(page)

    page.get_by_role("link", name="Events", exact=True).click()
    expect(page.get_by_role("log")).to_contain_text("warn_after=120 s")
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    page.get_by_role("link", name="Units", exact=True).click()
    page.get_by_label("State").select_option("waiting")
    page.get_by_role("button", name="Show").click()
    page.get_by_role("link", name="order-1").click()
    page.get_by_role("link", name="Release").click()
    page.get_by_role("button", name="Release from").click()

    expect(page.get_by_role("status")).to_have_text("It was freed.")


def test_signing_in_and_out(shop: Shop, visit: Open) -> None:
    """The token is typed once, is in no address, and a wrong one says so."""
    page = visit(is_signed_in=False)

    page.get_by_label("Token").fill("something else")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")
    page.get_by_label("Token").fill("a token of the shop")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview", level=1)).to_be_visible()
    assert "token" not in page.url
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.get_by_role("button", name="Sign out").click()

    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
