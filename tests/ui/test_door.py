"""Who may see the pages: nobody but who was given the address, whatever else runs on this machine."""

from __future__ import annotations

import http.client

import pytest

from artifactsync.ui.door import HEADERS
from tests.ui.conftest import Visitor, serving, train
from tests.ui.counting import CountingStore


@pytest.fixture(scope="module")
def store():
    return CountingStore()


@pytest.fixture(scope="module")
def inside(store, tmp_path_factory):
    train(store, tmp_path_factory.mktemp("trainer"))
    with serving(store) as visitor:
        yield visitor


PLACES = (
    "/",
    "/summaries?run=r",
    "/runs/r",
    "/runs/r/verify",
    "/runs/r/verify/progress",
    "/names?q=r",
    "/runs/none",
    "/nowhere",
)


@pytest.mark.parametrize("place", PLACES)
def test_without_the_token_there_is_nothing(inside, store, place):
    before = store.asked.copy()
    stranger = Visitor(inside.port)
    answers = [stranger.get(place)]
    stranger.cookie = inside.cookie[:-1]
    answers += [stranger.get(place), stranger.get(f"{place.partition('?')[0]}?token=no\udc80"[:-1])]
    for answer in answers:
        assert answer.status == 403
        assert "open the address that `artifactsync ui` printed" in answer.page.text
        assert 'value="' not in answer.text  # no form token either
    assert store.asked == before  # nothing was asked of the remote
    assert stranger.post("/runs/r/verify", {}).status == 403
    assert stranger.get("/static/ui.css").status == stranger.get("/report.css").status == 200


def test_the_token_lets_in_and_leaves_the_address(inside):
    visitor = Visitor(inside.port)
    answer = visitor.enter(inside.site.door.token)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    said = answer.headers["Set-Cookie"].lower()
    assert "httponly" in said
    assert "samesite=lax" in said
    assert inside.site.door.token not in said
    assert visitor.get("/").status == 200


def test_a_pass_lets_in_once(inside):
    made = inside.site.door.make_pass()
    assert Visitor(inside.port).enter(made).status == 303
    assert Visitor(inside.port).enter(made).status == 403
    assert Visitor(inside.port).enter(inside.site.door.token).status == 303


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example",
        "evil.example#127.0.0.1", "127.0.0.2", "0.0.0.0", "localhost:port", "[::1", "127.0.0.1:80:80", " ",
        "127.0.0.1 x",
    ],
)  # fmt: skip
def test_a_name_that_somebody_elses_page_has_made_to_point_here_is_refused(inside, host):
    answer = inside.get("/", Host=host)
    assert answer.status in {400, 421}  # 400: h11 knows that it is no host at all
    assert "Runs" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "[::1]:9000", "LocalHost:65535"])
def test_a_forwarded_port_is_this_machine(inside, host):
    assert inside.get("/", Host=host).status == 200


def test_a_form_of_another_page_starts_nothing(inside):
    token = inside.form_token("r")
    place = "/runs/r/verify"
    for form, headers in (
        ({}, {}),
        ({"form_token": "guess"}, {}),
        ({"form_token": inside.site.door.token}, {}),
        ({"form_token": token}, {"Origin": "http://evil.example"}),
        ({"form_token": token}, {"Origin": "null"}),
        ({"form_token": token}, {"Origin": f"http://127.0.0.1:{inside.port + 1}"}),
        ({"form_token": token}, {"Origin": f"http://127.0.0.1:{inside.port}.evil.example"}),
    ):
        answer = inside.post(place, form, **headers)
        assert answer.status == 403, (form, headers)
        assert "did not come from a page of this server" in answer.page.text
    assert inside.get(place).page.text.count("not checked") == 1
    assert inside.post(place, {"form_token": token, "x": "y" * 5000}).status == 413
    assert inside.post(place, {"form_token": token}, Origin=f"http://127.0.0.1:{inside.port}").status == 303
    assert "Verified" in inside.verified("r")


@pytest.mark.parametrize("place", [*PLACES, "/static/ui.js", "/static/none", "/report.css"])
def test_every_answer_forbids_what_no_page_of_ours_needs(inside, place):
    answer = inside.get(place)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Server"] is None
    if "html" in answer.headers["Content-Type"]:
        assert answer.page.text


@pytest.mark.parametrize(
    "path",
    [
        "/static/../door.py", "/static/%2e%2e/door.py", "/static/..%2fdoor.py", "/static/%2fetc/passwd",
        "/static//etc/passwd", "/static/", "/static", "/static/ui.css%00", "/static/..\\door.py", "/runs/..",
        "/runs/../../etc/passwd", "/runs/%2e%2e", "/runs/..%2f..%2fetc", "/runs/r%2f.artifactsync", "/runs/r%00",
        "/runs/.artifactsync", "/runs/%0d%0aX-Evil:1", "/runs/a%5cb", "/runs/" + "n" * 129, "/runs/%F0%9F",
        "//evil.example/", "/summaries?run=../x", "/runs/r/verify/x",
    ],
)  # fmt: skip
def test_no_path_leads_out(inside, store, path):
    before = store.asked.copy()
    answer = inside.get(path)
    assert answer.status == 404
    assert answer.headers["X-Evil"] is None
    assert "Owns:" not in answer.text
    assert store.asked == before
    assert answer.page.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(inside, method):
    line = http.client.HTTPConnection("127.0.0.1", inside.port, timeout=30)
    line.request(method, "/runs/r", headers={"Cookie": inside.cookie, "Connection": "close"})
    with line.getresponse() as answer:
        assert answer.status == 405
        answer.read()
