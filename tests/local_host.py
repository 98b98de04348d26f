"""A host for downloads on this machine, which can cut, refuse and ignore ranges; and archives to serve."""

import hashlib
import re
import socket
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

BODY = np.random.default_rng(0).bytes(300_000)


class Host(ThreadingHTTPServer):
    """Serves `files`; gives `statuses` first; cuts the connection after `cut` bytes while `cuts` last."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files, self.ranges, self.cut, self.cuts, self.statuses = {}, True, 0, 0, []
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        host = self.server
        asked = self.headers.get("Range")
        host.asked.append(asked)
        if host.statuses:
            self.send_error(host.statuses.pop(0))
            return
        body = host.files.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and host.ranges else 0
        if start >= len(body) > 0 and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if host.cuts:
            host.cuts -= 1
            self.wfile.write(body[start : start + host.cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(body[start:])

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def md5(body):
    return f"md5:{hashlib.md5(body).hexdigest()}"


def zipped(path: Path, members: dict, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info
