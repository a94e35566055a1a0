"""Rows of JSON for a program that `deepsad export` has written, over HTTP.

`serve_stablehlo.py` and `serve_onnx.py` stand on it. A row is an object of values by
the names of the columns, or a list of values in their order.
"""

import hashlib
import http.server
import json
import pathlib
import sys

import numpy as np


def opened(folder):
    """What export.json says, and the program, whose checksum must be right."""
    folder = pathlib.Path(folder)
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    content = (folder / about["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        sys.exit(f"{folder} is damaged: the checksum of {about['file']} is wrong")
    return about, content


def number(value, column):
    """A value of a column of a table as a number; texts have codes."""
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    if value is None or not text:
        return float("nan")
    if column["codes"] is None:
        return float(value)
    code = column["codes"].get(text, column.get("unknown"))
    if code is None:
        raise ValueError(f"{column['name']} is {value!r}, which is none of its codes")
    return float(code)


def encoded(row, columns):
    """A row of a table as numbers, in the order of the columns."""
    if isinstance(row, dict):
        names = [column["name"] for column in columns]
        needed = {c["name"] for c in columns if c["holds"] != "nothing"}
        if wrong := (needed - row.keys()) | (row.keys() - set(names)):
            raise ValueError(f"columns {sorted(wrong)} are missing, or too many")
        row = [row.get(name) for name in names]
    pairs = zip(row, columns, strict=True)
    return [0.0 if c["holds"] == "nothing" else number(v, c) for v, c in pairs]


def array(given, about):
    """Rows as the program takes them."""
    (takes,) = about["inputs"]
    if columns := takes.get("columns"):
        given = [encoded(row, columns) for row in given]
    found = np.array(given)
    x = found.astype(takes["dtype"])
    if list(x.shape[1:]) != takes["shape"][1:]:
        raise ValueError(f"rows have shape {x.shape}; it must be {takes['shape']}")
    if x.dtype == np.uint8 and (x != found).any():
        raise ValueError("values of images must be bytes, from 0 to 255")
    return x


def answer(given, about, program):
    """What a program, arrays to a dictionary of arrays, says of rows."""
    if not given:
        return {output["name"]: [] for output in about["outputs"]}
    found = {name: y.tolist() for name, y in program(array(given, about)).items()}
    if any(score != score for score in found["score"]):
        raise ValueError("a value is not finite, or too far from those of the training")
    return found


def serve(about, program, port):
    """Answers each POST of a list of rows until it is stopped."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            try:
                text = self.rfile.read(int(self.headers["Content-Length"]))
                status, said = 200, answer(json.loads(text), about, program)
            except (OverflowError, TypeError, ValueError) as error:
                status, said = 400, {"error": str(error)}
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("localhost", port), Handler)
    print(f"http://localhost:{server.server_port}", flush=True)
    server.serve_forever()
