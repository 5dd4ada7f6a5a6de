"""A stand-in for vLLM's command: it lists its model, and has an engine in a process of its own.

The name of the model says how it behaves: `…-dies` ends at once, `…-mute` lists nothing, and
`…-stubborn` does not end when it is asked to.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
parser.add_argument("model")
parser.add_argument("--host", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--served-model-name", nargs="+")
parser.add_argument("--tensor-parallel-size", type=int, default=1)
given = parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        names = [] if given.model.endswith("-mute") else given.served_model_name or [given.model]
        body = json.dumps({"data": [{"id": name} for name in names]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


if given.model.endswith("-dies"):
    sys.exit("there is no such model")
if given.model.endswith("-stubborn"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pids = {"server": os.getpid(), "engine": engine.pid, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
print(json.dumps(pids), flush=True)
HTTPServer((given.host, given.port), Handler).serve_forever()
