"""The real server with the real pages, in this process, and requests as any program on this machine can send them."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest

from artifactsync import Run
from artifactsync.ui.remote import Remote
from artifactsync.ui.server import make_server
from artifactsync.ui.site import Site
from tests.ui.counting import CountingStore

TIMEOUT_S = 30
_TAGS = {
    "html", "head", "meta", "title", "link", "script", "body", "header", "main", "h1", "h2", "h3", "p", "span", "div",
    "a", "bdi", "code", "noscript", "form", "input", "button", "label", "ul", "li", "dl", "dt", "dd", "table", "thead",
    "progress", "tbody", "tr", "th", "td", "svg", "polyline", "line", "circle", "rect", "text",
}  # fmt: skip
_VOID = {"meta", "link", "input"}
_OWN_ADDRESS = re.compile(r"/(?:static/[a-z.]+|report\.css|runs/[A-Za-z0-9][A-Za-z0-9._-]*(?:/verify)?)?")


class Page(HTMLParser):
    """A page read as a browser's parser reads it: balanced, of known tags, without a script or style in it."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.words, self._open = set(), [], [], []
        self.feed(source)
        self.close()
        assert self._open == []
        assert self.tags <= _TAGS, self.tags - _TAGS
        for name, value in self.attributes:
            assert not name.startswith("on"), name
            assert name not in {"style", "srcdoc", "formaction", "xlink:href"}, name
            assert name not in {"href", "src", "action"} or _OWN_ADDRESS.fullmatch(value), value
        assert not [char for char in source if char != "\n" and not char.isprintable()]

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self._open.append(tag)
        assert tag != "script" or dict(attrs).keys() == {"src", "async"}

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag not in {"a", "bdi", "code", "span"}:
            self.words.append(" ")

    def handle_data(self, data):
        if self._open and self._open[-1] in {"script", "style"}:
            assert not data.strip()
        self.words.append(data)


class Answer:
    """What came back."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def page(self):
        return Page(self.text)


class Visitor:
    """Somebody on this machine who talks to the server."""

    def __init__(self, port, site=None):
        self.port, self.site, self.cookie = port, site, ""

    def ask(self, method, path, body=None, **headers):
        """The answer's headers, and the connection to read the rest from."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        sent = {"Cookie": self.cookie, "Connection": "close"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, path, body, {name: value for name, value in sent.items() if value})
        return line.getresponse()

    def get(self, path, **headers):
        return Answer(self.ask("GET", path, **headers))

    def post(self, path, form, **headers):
        headers.setdefault("Content_Type", "application/x-www-form-urlencoded")
        return Answer(self.ask("POST", path, urlencode(form), **headers))

    def enter(self, token):
        """Open the printed address; returns the answer, and keeps the cookie."""
        answer = self.get(f"/?token={token}")
        self.cookie = (answer.headers.get("Set-Cookie") or "").partition(";")[0]
        return answer

    def form_token(self, run_name):
        """The token of the form on the run's page."""
        return re.search(r'name="form_token" value="([\w-]+)"', self.get(f"/runs/{run_name}").text)[1]

    def verified(self, run_name, **form):
        """Press the button, and read the page until it has the verdict."""
        asked = self.post(f"/runs/{run_name}/verify", {"form_token": self.form_token(run_name), **form})
        assert (asked.status, asked.headers["Location"]) == (303, f"/runs/{run_name}/verify")
        while 'http-equiv="refresh"' in (answer := self.get(f"/runs/{run_name}/verify")).text:
            assert answer.status == 200
        return answer.page.text


@contextlib.contextmanager
def serving(store, *, first_answer_s=TIMEOUT_S):
    """The pages of a store, on a port of their own; yields somebody who has come in."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        site = Site(Remote(store), name=str(port), first_answer_s=first_answer_s)
        server = make_server(site)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        visitor = Visitor(port, site)
        try:
            visitor.enter(site.door.token)
            yield visitor
        finally:
            server.should_exit = True
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


def train(remote, folder, name="r", *, steps=(1, 2), metrics=("loss",), **options):
    """A finished run with a checkpoint for each step, metrics and a log."""
    with Run(name, remote=remote, local_root=folder, **options) as run:
        for step in steps:
            file = run.local_dir / f"c{step}.bin"
            file.write_bytes(b"%d" % step * 1000)
            run.save_files([file], step=step, metrics=dict.fromkeys(metrics, 1.0 / step)).result(TIMEOUT_S)
        (run.local_dir / "logs-rank0.txt").write_text('[metric][batch=3]: {"accuracy": 0.5}\n')
        run.push(run.local_dir / "logs-rank0.txt")
        run.wait(TIMEOUT_S)


@pytest.fixture
def store():
    """A remote in memory whose every request is counted."""
    return CountingStore()
