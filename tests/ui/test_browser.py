"""The pages in a real Chromium (`make browser`): what they do there, and pictures to be looked at in build/ui/."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path

import programs
import pytest

from artifactsync import Run
from artifactsync.errors import RemoteUnreachableError
from tests.ui.conftest import serving, train
from tests.ui.counting import CountingStore
from tests.ui.test_hostile import hostile

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]  # Chromium may have to be fetched first
PICTURES = Path(__file__).parents[2] / "build" / "ui"
LOOKS = [(name, width, scheme) for name, width in (("desktop", 1200), ("phone", 390)) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 `make test` collects this file without it

    program, more = programs.chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox"],  # it may be root's, in a container; the pages are ours
            env={**os.environ, **more},
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """A window in which anything that the browser complains of, or that a page pops up, fails the test."""
    complaints, contexts = [], []

    def opened(visitor, *, width=1200, scheme="light", **more):
        context = chromium.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: _is_of_damage(message) or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}") or dialog.dismiss())
        page.on("request", lambda request: request.url.startswith(base) or complaints.append(request.url))
        base = f"http://127.0.0.1:{visitor.port}/"
        page.goto(f"{base}?token={visitor.site.door.token}")
        page.base = base
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def _is_of_damage(message):
    """Chromium notes every page that is no success; of this one it should."""
    return "status of 502" in message.text and message.location["url"].endswith("/runs/damaged")


@pytest.fixture(scope="module")
def visitor(tmp_path_factory):
    """A remote as somebody has it after a week."""
    store, folder = CountingStore(), tmp_path_factory.mktemp("trainer")
    store.url = "s3://bucket/runs"  # for the pictures of docs/ui.md
    chance = random.Random(1)
    for name, steps, metrics in (
        ("1795100420-quiet-mole", 400, False),
        ("1795210011-infrared-ferret", 900, False),
        ("1795299363-flexible-ringtail", 1000, True),
        ("1795299363-flexible-ringtail", 1600, True),
    ):
        with Run(name, remote=store, local_root=folder) as run:
            latest = run.latest()
            first = latest.step if latest else 0
            log = run.local_dir / "metrics-rank0.jsonl"
            with log.open("a") as file:
                for step in range(first, steps) if metrics else ():
                    loss = 2.3 * math.exp(-step / 400) + 0.15 * chance.random()
                    accuracy = 1 - 0.9 * math.exp(-step / 300) - 0.03 * chance.random()
                    rate = 1e-3 * (1 + math.cos(math.pi * step / 1600)) / 2
                    values = {"loss/train/total": loss, "metrics/eval/Accuracy": accuracy, "lr": rate}
                    file.write(json.dumps({"step": step, "metrics": values}) + "\n")
            run.push(log, growing=True)
            (run.local_dir / "logs-rank0.txt").write_text("epoch 1\n")
            run.push(run.local_dir / "logs-rank0.txt")
            for step in range(first + 200, steps + 1, 200):
                checkpoint = run.local_dir / "checkpoints" / f"ep{step // 500}-ba{step}-rank0.pt"
                checkpoint.parent.mkdir(exist_ok=True)
                checkpoint.write_bytes(chance.randbytes(200_000))
                run.save_files([checkpoint], step=step, epoch=step // 500, metrics={"val_loss": 2 / step}).result(30)
            run.end(30, state="preempted" if (name, steps) == ("1795299363-flexible-ringtail", 1000) else "completed")
    for name in hostile():
        if not name.startswith(".artifactsync"):
            store.objects[f"1795100420-quiet-mole/{name}"] = b"x"
    store.objects["damaged/.artifactsync/journal/00000000000000000001.json"] = b"{"
    with serving(store) as entered:
        yield entered


def picture(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    size = page.evaluate("[innerWidth, Math.min(document.documentElement.scrollHeight, 2400)]")
    clip = {"x": 0, "y": 0, "width": size[0], "height": size[1]}
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True, clip=clip)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than its window"


@pytest.mark.parametrize(("look", "width", "scheme"), LOOKS)
def test_every_page_as_it_looks(open_page, visitor, look, width, scheme):
    page = open_page(visitor, width=width, scheme=scheme)
    page.wait_for_load_state("networkidle")
    assert "…" not in page.locator(".state").all_inner_texts()
    assert page.locator("tbody tr").count() == 4
    picture(page, f"runs-{look}-{scheme}")
    page.click("text=flexible-ringtail")
    page.wait_for_selector("h2:text-is('Other files')")
    assert page.locator("svg").count() >= 6
    assert page.locator(".waiting:visible").count() == 0
    picture(page, f"run-{look}-{scheme}")
    page.click("text=read and hash every byte")
    page.click("button:has-text('Verify')")
    page.wait_for_selector("text=every byte read")
    assert "Verified: 8 files" in page.inner_text("main")
    picture(page, f"verified-{look}-{scheme}")
    for run_name in ("1795100420-quiet-mole", "damaged"):  # with hostile names; of a journal that cannot be read
        page.goto(f"{page.base}runs/{run_name}", wait_until="load")
        picture(page, f"{run_name.partition('-')[2] or run_name}-{look}-{scheme}")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_command_is_copied(open_page, visitor):
    page = open_page(visitor, permissions=["clipboard-read", "clipboard-write"])
    page.goto(f"{page.base}runs/1795210011-infrared-ferret")
    page.click("button:has-text('Copy') >> nth=0")
    page.wait_for_selector("text=Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "artifactsync --remote s3://bucket/runs pull 1795210011-infrared-ferret"


def test_a_thousand_rows_are_asked_about_as_they_come_into_view_and_sorted(open_page, store, tmp_path):
    for steps in (1, 2, 3):
        train(store, tmp_path, f"shape-{steps}", steps=tuple(range(1, steps + 1)))
    shapes = [
        {key.partition("/")[2]: data for key, data in store.objects.items() if key.startswith(f"shape-{steps}/")}
        for steps in (1, 2, 3)
    ]
    store.objects.clear()
    for number in range(999):
        store.objects |= {f"run-{number:03}/{key}": data for key, data in shapes[number % 3].items()}
    with serving(store) as visitor:
        store.asked.clear()
        page = open_page(visitor)
        page.wait_for_selector("tr[data-run=run-998] .state.completed")
        page.wait_for_load_state("networkidle")
        assert page.locator(".state.completed").count() < 200  # those in view, and a little more
        picture(page, "thousand")
        page.locator("tr[data-run=run-500]").scroll_into_view_if_needed()
        page.wait_for_selector("tr[data-run=run-500] .state.completed")
        page.click("button:has-text('checkpoints')")
        page.wait_for_selector("th[aria-sort=descending] >> text=checkpoints")
        assert page.locator(".state.completed").count() == 999
        counts = page.locator("[data-field=checkpoints]").all_inner_texts()
        assert counts == ["3"] * 333 + ["2"] * 333 + ["1"] * 333
        page.click("button:has-text('checkpoints')")
        page.wait_for_selector("th[aria-sort=ascending] >> text=checkpoints")
        assert page.locator("[data-field=checkpoints]").first.inner_text() == "1"


def test_without_javascript_the_runs_pages_have_everything(open_page, visitor):
    page = open_page(visitor, java_script_enabled=False)
    assert "Without JavaScript" in page.inner_text("main")
    page.click("text=infrared-ferret")
    page.wait_for_selector("h2:text-is('Other files')")
    page.click("button:has-text('Verify')")
    page.wait_for_selector("text=sizes compared")


def passing(page, seconds, selector, *, there=True):
    """Let so much time pass, again and again, until what is looked for is there, or no more."""
    while bool(page.locator(selector).count()) != there:
        page.clock.fast_forward(seconds * 1000)
        page.wait_for_timeout(100)  # what was asked then is on its way


def test_the_list_keeps_itself_up_to_date(open_page, store, tmp_path):
    with serving(store) as visitor:
        page = open_page(visitor)
        page.clock.install()
        page.reload()
        assert "No runs here yet" in page.inner_text("main")
        train(store, tmp_path, "first", steps=(1,))
        passing(page, 31, "tr[data-run=first] .state.completed")
        train(store, tmp_path, "second", steps=(1, 2))
        with Run("third", remote=store, local_root=tmp_path) as run:
            passing(page, 31, "tr[data-run=second] .state.completed")
            passing(page, 31, "tr[data-run=third] .state.running")
            assert page.inner_text("#count") == "3 runs"
            file = run.local_dir / "c7.bin"
            file.write_bytes(b"7")
            run.save_files([file], step=7).result(30)
            passing(page, 11, "tr[data-run=third] [data-field=last_step]:text-is('7')")
            passing(page, 11, "tbody tr:first-child bdi:text-is('third')")  # the newest commit
        passing(page, 11, "tr[data-run=third] .state.completed")
        for key in [key for key in store.objects if key.startswith("first/")]:
            del store.objects[key]
        passing(page, 31, "tr[data-run=first]", there=False)
        page.click("tr[data-run=second] a")
        page.wait_for_selector("h1:has-text('second')")


def test_trouble_is_said_beside_what_is_known_and_goes(open_page, store, tmp_path):
    train(store, tmp_path, "first", steps=(1,))
    with serving(store) as visitor:
        page = open_page(visitor)
        page.clock.install()
        page.reload()
        page.wait_for_selector("tr[data-run=first] .state.completed")
        store.list_folders = _no_answer
        passing(page, 31, "#listing-trouble:text('no answer look at the network')")
        assert page.inner_text("tr[data-run=first] .state") == "completed"
        del store.list_folders
        passing(page, 31, "#listing-trouble:empty")


def test_a_verification_is_followed(open_page, store, tmp_path):
    train(store, tmp_path, steps=(1, 2, 3))
    with serving(store) as visitor:
        page = open_page(visitor)
        page.goto(f"{page.base}runs/r")
        page.click("text=read and hash every byte")
        gate = store.hold("get", "r/c3")
        page.click("button:has-text('Verify')")
        page.wait_for_selector("#progress[value='2000']")
        page.evaluate("document.getElementById('progress').same = true")
        page.wait_for_selector(
            "#progress-words:text-matches('of 2.93 KiB in 3 files, for [4-9].* s now, about .* left')"
        )
        assert page.evaluate("document.getElementById('progress').same"), "the page was not loaded anew"
        picture(page, "verifying")
        gate.set()
        page.wait_for_selector("text=Verified")


def _no_answer(*_):
    raise RemoteUnreachableError("no answer", hint="look at the network")
