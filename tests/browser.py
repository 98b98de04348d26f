"""A headless Chromium over its DevTools protocol: what a page fetches, says and looks like."""

import json
import subprocess
import time
from contextlib import closing, contextmanager
from pathlib import Path

import requests
import websocket

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
    # A page must not notice that there is a network.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
MEASURE = """({
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  pictures: [...document.images].map(i => [i.getAttribute('alt'), i.naturalWidth, i.clientWidth]),
  smallest: Math.min(...[...document.querySelectorAll('p, td, th, a, li, figcaption, dd')]
    .filter(e => e.offsetParent).map(e => parseFloat(getComputedStyle(e).fontSize))),
})"""


@contextmanager
def chromium(command, profile, deadline=60):
    """A browser's tab, as a function that sends a command of the protocol and gives its result."""
    arguments = [command, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end, port = time.monotonic() + deadline, Path(profile) / "DevToolsActivePort"
        while not port.exists() or not port.read_text().strip():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command} did not start")
            time.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
        (tab, *_) = [one for one in requests.get(address, timeout=10).json() if one["type"] == "page"]
        address = tab["webSocketDebuggerUrl"]
        with closing(websocket.create_connection(address, timeout=30, suppress_origin=True)) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait(20)


class Tab:
    """One tab; `events` holds what it has told since the last page."""

    def __init__(self, connection):
        self.connection, self.sent, self.events = connection, 0, []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        self.sent += 1
        self.connection.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (message := json.loads(self.connection.recv())).get("id") != self.sent:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def run(self, script):
        return self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)["result"].get(
            "value"
        )

    def open(self, page, width):
        """Open a file in a window of some pixels, every picture of it loaded."""
        self.events = []
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.connection.recv()))
        self.run("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
        self.run("Promise.allSettled([...document.images].map(i => i.decode()))")
        return self.run(MEASURE)

    def complaints(self):
        """Errors and warnings in the console, uncaught exceptions, and requests that failed."""
        found, bad = [], ("error", "warning")
        for method, about in ((event["method"], event["params"]) for event in self.events):
            if method == "Log.entryAdded" and about["entry"]["level"] in bad:
                found.append(about["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and about["type"] in bad:
                found.append(str(about["args"]))
            elif method in ("Runtime.exceptionThrown", "Network.loadingFailed"):
                found.append(str(about))
        return found

    def asked_for(self):
        """Addresses the page has asked for."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]
