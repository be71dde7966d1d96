"""The program in the demo's image. It runs there, on the image's own Python; nothing here imports it.

It does what a small model server does before it is ready: imports a scientific stack, fits a model, then answers
`GET /` with a prediction. The port comes from the environment variable PORT.
"""

import json
import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

BEGAN = time.monotonic()


def fitted_model() -> tuple[Any, Any]:
    """A classifier fitted to a table, and the table; touches numpy, scipy, pandas and scikit-learn."""
    # The libraries are in the image; where types are checked they may be there or not.
    import numpy
    import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from scipy import stats  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-untyped, import-not-found, unused-ignore]

    random = numpy.random.default_rng(7)
    table = pandas.DataFrame(random.normal(size=(400, 4)), columns=list("abcd"))
    wanted = (table.sum(axis=1) > stats.norm.ppf(0.5)).astype(int)
    return RandomForestClassifier(n_estimators=10, random_state=7).fit(table, wanted), table


MODEL, TABLE = fitted_model()
IMPORT_S = time.monotonic() - BEGAN


class Answer(BaseHTTPRequestHandler):
    """One prediction for any GET."""

    def do_GET(self) -> None:
        body = json.dumps({"prediction": int(MODEL.predict(TABLE[:1])[0]), "import_s": round(IMPORT_S, 3)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent: the demo's terminal is not a log."""


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
