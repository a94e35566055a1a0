"""Scores rows over HTTP by onnxruntime alone, with a program of `deepsad export`.

    pip install onnxruntime
    python serve_onnx.py pump.onnx 8000
    curl localhost:8000 -d '[{"plant": "A", "pressure": 0.3, "speed": null}]'

The answer has a list for each output that export.json names.
"""

import sys

import onnxruntime
import rows

about, content = rows.opened(sys.argv[1])
options = onnxruntime.SessionOptions()
options.log_severity_level = 3  # errors alone
session = onnxruntime.InferenceSession(
    content, options, providers=["CPUExecutionProvider"]
)
names = [output.name for output in session.get_outputs()]


def program(x):
    """All outputs by their names."""
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


rows.serve(about, program, int(sys.argv[2]))
