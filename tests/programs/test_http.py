"""HTTP: events that come one at a time over an answer that never ends, and parts of a file."""

from __future__ import annotations

import sys

from tests.programs.homes import SLOW_S, Homes, needs

pytestmark = needs("curl")

SERVER = """
import http.server, queue, re

heard = queue.Queue()
CONTENT = bytes(range(251)) * 40_000

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def answer(self, status, body, **more):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            word = "hello"
            while True:
                self.wfile.write(f"data: {word}\\n\\n".encode())
                word = heard.get()
        elif self.path.startswith("/tell/"):
            heard.put(self.path.removeprefix("/tell/"))
            self.answer(200, b"told")
        else:
            first, last = map(int, re.fullmatch(r"bytes=(\\d+)-(\\d+)", self.headers["Range"]).groups())
            self.answer(206, CONTENT[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(CONTENT)}")

http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
CONTENT = bytes(range(251)) * 40_000


def test_events_are_seen_as_they_are_sent_and_parts_of_a_file_fit(homes: Homes) -> None:
    homes.serve("http", [sys.executable, "-c", SERVER], 8000)
    homes.link("8000", forward=["18000:8000"])
    reader = homes.start("reader", "curl", "-sSN", "http://127.0.0.1:18000/events")
    reader.wait_said("data: hello\n\n", SLOW_S)
    for word in ("first", "second"):
        assert homes.home.run("curl", "-sS", f"http://127.0.0.1:8000/tell/{word}").stdout == "told"
        reader.wait_said(f"data: {word}\n\n", SLOW_S)
    assert reader.process.poll() is None
    taken = homes.folder / "part"
    for first, last in ((0, 9), (4_000_001, 9_000_000), (len(CONTENT) - 1, len(CONTENT) - 1)):
        homes.use("curl", "-sSf", "-r", f"{first}-{last}", "-o", taken, "http://127.0.0.1:18000/file")
        assert taken.read_bytes() == CONTENT[first : last + 1]
