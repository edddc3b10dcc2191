"""Where the built book lies and which pages it has, for the tests that open it.

Another copy of the book is tested with SAFEEDIT_BOOK=folder/of/the/html.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from safeedit.records import ROOT

HTML = Path(os.environ.get("SAFEEDIT_BOOK", ROOT / "_build" / "html")).resolve()
GENERATED = ("search", "genindex")  # pages that no file of the contents makes


def toc_files() -> list[str]:
    """All files of the contents, at any depth."""

    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, dict):
            for key, value in entry.items():
                if key in ("file", "root"):
                    yield value
                else:
                    yield from files(value)
        elif isinstance(entry, list):
            for item in entry:
                yield from files(item)

    return list(files(yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())))


PAGES = [f"{name}.html" for name in (*toc_files(), *GENERATED)]
BUILT = [page for page in PAGES if (HTML / page).is_file()]


class Handler(SimpleHTTPRequestHandler):
    """The book's files as GitHub Pages serves them, silently."""

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def send_error(self, code: int, *args: Any) -> None:
        """Show the book's own page where a file is missing."""
        if code != 404:
            return super().send_error(code, *args)
        body = Path(self.directory, "404.html").read_bytes()
        self.send_response(404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The files of a folder at an address of this machine, as from a web server."""
    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
