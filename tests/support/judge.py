"""A judge that answers over HTTP as OpenAI's endpoint does, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JudgeServer(ThreadingHTTPServer):
    """Says `Score: 1` of a request whose text has `right`, else `Score: 0`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.requests: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.failures: list[int] = []
        """HTTP statuses of the next answers, before it works again."""
        self.reply: str | None = None
        """In place of the score."""
        self.delay_s = 0.0
        self.num_open = 0
        self.most_open = 0
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        judge = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with judge.lock:
            judge.requests.append(body)
            judge.authorizations.append(self.headers["authorization"])
            judge.num_open += 1
            judge.most_open = max(judge.most_open, judge.num_open)
            status = judge.failures.pop(0) if judge.failures else 200
        time.sleep(judge.delay_s)
        with judge.lock:
            judge.num_open -= 1
        text = body["messages"][-1]["content"]
        said = judge.reply if judge.reply is not None else f"Explained. Score: {int('right' in text)}"
        answer = {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": {"total_tokens": 7}}
        content = json.dumps(answer if status == 200 else {"error": "busy"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None: ...


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
