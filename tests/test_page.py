"""The page: a run is drawn as it happens, in a real browser, and nothing foreign becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from r2graph.allocate import AllocateContext, CheapestFirst
from r2graph.decompose import CheckpointDecomposer
from r2graph.serve import create_app
from tests import chromium
from tests.fakes import FakeChat, ProviderError, echo, member, pool_of, scripted
from tests.serving import Served, graph_of, serving

PLAN = "s1: one\ns2: two\ns3: three {s1} {s2}"
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
KEY = "sk-canary-3"
browser = pytest.mark.skipif(chromium.find() is None, reason="there is no Chromium on the PATH")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    with chromium.browsing(tmp_path_factory.mktemp("profile")) as page:
        page.look(1280, 800)
        yield page


def asked(page: chromium.Page, server: Served, query: str, pool: str = "") -> None:
    """Open the page and ask."""
    page.open(f"{server.url}/")
    page.until("document.querySelectorAll('#ladder li').length > 0")
    if pool:
        page.fill("#model", pool)
    page.fill("#query", query)
    page.click("#run")


def ended(page: chromium.Page) -> None:
    page.until("['done', 'failed', 'stopped'].includes(document.body.dataset.status)")


def test_the_page_comes_from_this_server_alone() -> None:
    with serving(create_app(graph_of(pool_of(echo())))) as server:
        for path in ("/", "/page.js", "/page.css"):
            text = httpx.get(server.url + path).text
            assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}
            assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


@browser
def test_a_run_is_drawn_as_it_happens(page: chromium.Page) -> None:
    slow = FakeChat(answer=lambda text: "" if "three" in text else f"[{text}]", delay_s=0.4)
    with serving(create_app(graph_of(pool_of(slow, echo(delay_s=1.5)), PLAN))) as server:
        asked(page, server, "q")
        page.until("document.querySelectorAll('.node').length === 3")
        assert page.value("document.querySelectorAll('.edge').length") == 2
        page.until("document.querySelector('.node.waiting[data-step=s3]') !== null")
        page.until("document.querySelector('#ladder li.active[data-member=m1]') !== null")
        # It escalates, and the ladder shows where to.
        page.until("document.querySelector('#ladder li.active[data-member=m2]') !== null")
        assert "✗" in page.text("[data-step=s3]")
        assert page.text("#status") == "2 of 3 steps done"
        ended(page)
        assert page.text("#answer") == "[three [one] [two]]"
        assert page.text("[data-step=s3] .chip") == "m2"
        assert "m2" in page.text("#bill tbody")
        assert "all on m2 (estimate)" in page.text("#bill")
        assert page.text("#history tbody button") == "q"
        assert page.complaints == []
        assert all(each.startswith((server.url, "data:")) for each in page.requests)


class ToTheTop(CheapestFirst):
    """Moves up to the strongest member at once."""

    def escalate(self, member: str, context: AllocateContext) -> str | None:
        top = context.pool.names[-1]
        return None if member == top else top


@browser
def test_the_model_that_is_lit_is_the_one_that_was_asked(page: chromium.Page) -> None:
    lamp = "document.querySelector('#ladder li.active[data-member={}]') !== null"
    planner = member("m2", scripted(PLAN, delay_s=1.5))
    pool = pool_of(scripted("", delay_s=0.2), echo(), echo(delay_s=1.5))
    graph = graph_of(pool, decomposer=CheckpointDecomposer(planner), allocator=ToTheTop())
    with serving(create_app(graph)) as server:
        asked(page, server, "q")
        page.until(lamp.format("m2"))
        assert page.text("#status") == "m2 plans"
        page.until(lamp.format("m3"))  # not m2, which is the next one up
        assert page.value("document.querySelectorAll('#ladder li.active').length") == 1
        assert page.text("[data-step=s1] .chip") == "m3"
        assert page.value("document.querySelector('.node.waiting[data-step=s3]') !== null")
        ended(page)
        assert page.value("document.querySelectorAll('#ladder li.active').length") == 0


@browser
def test_a_step_can_be_looked_into_and_an_old_run_be_shown_again(page: chromium.Page) -> None:
    with serving(create_app(graph_of(pool_of(scripted("", "one", "x"), echo()), PLAN))) as server:
        asked(page, server, "first")
        ended(page)
        page.click("[data-step=s1]")
        page.until("!document.querySelector('#step-card').hidden")
        assert page.text("#step-title") == "Step s1"
        assert page.value("document.querySelectorAll('#step-attempts tbody tr').length") >= 1
        page.fill("#query", "second")
        page.click("#run")
        page.until("document.querySelectorAll('#history tbody tr').length === 2")
        ended(page)
        page.click("#history tbody tr:last-child button")
        page.until("document.querySelector('#step-card').hidden")
        assert page.text("#answer")


@browser
def test_what_models_and_users_write_is_text(page: chromium.Page) -> None:
    chat = FakeChat(answer=lambda _: HOSTILE)
    with serving(create_app(graph_of(pool_of(chat, chat), f"s1: {HOSTILE}"))) as server:
        asked(page, server, HOSTILE)
        ended(page)
        page.click("[data-step=s1]")
        assert page.text("#answer") == HOSTILE
        assert page.text("#history tbody button") == HOSTILE
        assert page.value("document.querySelectorAll('img, main script, aside script').length") == 0
        assert page.value("document.title") == "r2graph"
        assert page.complaints == []


@browser
def test_a_run_can_be_stopped(page: chromium.Page) -> None:
    with serving(create_app(graph_of(pool_of(echo(delay_s=30)), PLAN))) as server:
        asked(page, server, "q")
        page.until("document.querySelectorAll('.node.running').length === 2")
        page.click("#stop")
        page.until("document.body.dataset.status === 'stopped'")
        told = ""
        while 'cancelled_total{model="fakes"} 1.0' not in told:
            told = httpx.get(f"{server.url}/metrics").text
        assert page.value("document.querySelector('#run').hidden") is False


@browser
def test_quality_budget_and_pool_go_with_the_run_and_errors_are_shown(page: chromium.Page) -> None:
    graphs = {"a": graph_of(pool_of(echo())), "b": graph_of(pool_of(echo(), echo()), quality=0.4)}
    with serving(create_app(graphs)) as server:
        page.open(f"{server.url}/")
        page.until("document.querySelectorAll('#ladder li').length === 1")
        page.fill("#model", "b")
        page.until("document.querySelectorAll('#ladder li').length === 2")
        assert page.text("#quality-shown") == "0.40"
        page.fill("#quality", "0.25")
        page.fill("#budget", "0.000001")
        page.fill("#query", "q")
        page.click("#run")
        ended(page)
        assert "limit of budget" in page.text("#answer")
        assert "0.25" in page.text("#history tbody")


@browser
def test_a_step_that_nobody_could_do_is_marked_when_the_run_fails(page: chromium.Page) -> None:
    down = scripted(ProviderError(401))
    with serving(create_app(graph_of(pool_of(down, down), "s1: one\ns2: two {s1}"))) as server:
        asked(page, server, "q")
        ended(page)
        assert page.value("document.body.dataset.status") == "failed"
        assert page.value("document.querySelector('.node.bad[data-step=s1]') !== null")
        assert page.value("document.querySelector('.node.waiting[data-step=s2]') !== null")
        assert page.text("#bill") == "$0 for attempts"


@browser
def test_a_server_with_a_key_is_asked_once_the_key_is_given(page: chromium.Page) -> None:
    with serving(create_app(graph_of(pool_of(echo())), key=KEY)) as server:
        page.open(f"{server.url}/")
        page.until("!document.querySelector('#key-box').hidden")
        page.fill("#key", KEY)
        page.click("#key-box button")
        page.until("document.querySelectorAll('#ladder li').length === 1")
        page.fill("#query", "q")
        page.click("#run")
        ended(page)
        assert page.text("#answer") == "[two [one]]"
        assert page.value("localStorage.length + sessionStorage.length") == 0
        page.complaints.clear()  # the 401 is in the console


@browser
def test_the_page_fits_a_phone(page: chromium.Page, tmp_path: Path) -> None:
    with serving(create_app(graph_of(pool_of(echo(), echo()), PLAN))) as server:
        page.look(390, 844, "dark", phone=True)
        try:
            asked(page, server, "a query that is rather long " * 10)
            ended(page)
            assert page.value("document.documentElement.scrollWidth <= innerWidth")
            page.screenshot(tmp_path / "phone.png")
        finally:
            page.look(1280, 800)
    assert (tmp_path / "phone.png").stat().st_size > 10_000
