"""The program in the image of small files: it runs there, on the image's own Python, and nothing here imports it.

Imports every package below the site directory, then answers `GET /`.
"""

import importlib
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

SITE = "/opt/app/site"
for name in sorted(os.listdir(SITE)):
    if name.startswith("package_"):
        importlib.import_module(name)
COUNT = sum(name.startswith("package_") for name in sys.modules)


class Answer(BaseHTTPRequestHandler):
    """How many modules were imported."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(COUNT).encode())

    def log_message(self, *_: object) -> None:
        """Silent."""


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
