"""A server that speaks /v1/chat/completions, in a thread; what it answers is a test's function."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], int], str | bytes | tuple[int, str]]
"""A request's body and its number from 0 -> the answer's text, or a status and what is said; bytes
are the whole body."""


@dataclass
class Served:
    """Where it listens, and what it has seen."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    now: int = 0
    most: int = 0
    """Requests that were open at once."""


@contextlib.contextmanager
def serving(answer: Answer, delay: float = 0.0) -> Iterator[Served]:
    seen, lock = Served(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.requests)
                seen.requests.append(body)
                seen.keys.append(self.headers.get("Authorization", ""))
                seen.now += 1
                seen.most = max(seen.most, seen.now)
            time.sleep(delay)
            said = answer(body, number) if self.path == "/v1/chat/completions" else (404, "no")
            with lock:
                seen.now -= 1
            self._send(*(said if isinstance(said, tuple) else (200, said)), body["model"])

        def _send(self, status: int, said: str | bytes, model: str) -> None:
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            good = {"id": "x", "object": "chat.completion", "created": 0, "model": model,
                    "choices": [choice]}  # fmt: skip
            bad = {"error": {"message": said, "type": "t", "code": None, "param": None}}
            whole = good if status == 200 else bad
            content = said if isinstance(said, bytes) else json.dumps(whole).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("retry-after-ms", "10")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
