"""Start the example in an environment with nothing else in it; ask for its health, and stop it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

EXAMPLE = [sys.executable, "-m", "example_app"]
BAD_SETTINGS = 2

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]

server = subprocess.Popen(EXAMPLE, env={**os.environ, "PORT": str(port)})
try:
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/pool/health", timeout=5) as answer:
                health = json.load(answer)
            break
        except urllib.error.URLError:
            time.sleep(0.2)
    else:
        sys.exit("the example did not answer within 20 s")
    print(health)
    if health["status"] != "pass":
        sys.exit("the example is not well")
    server.send_signal(signal.SIGTERM)
    if server.wait(timeout=30) != 0:
        sys.exit(f"the example ended with {server.returncode} on SIGTERM")
finally:
    if server.poll() is None:
        server.kill()
        server.wait()

# A database or cache whose driver is missing is refused in one line, which says what to install.
for variables in (
    {"DATABASE_URL": "postgresql://user:hunter2@db.example/links"},
    {"DATABASE_URL": "mysql://user:hunter2@db.example/links"},
    {"CACHE_URL": "redis://user:hunter2@cache.example/0"},
):
    ended = subprocess.run(
        EXAMPLE, check=False, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )
    print(ended.stderr, end="")
    if ended.returncode != BAD_SETTINGS or ended.stderr.count("\n") != 1 or "pip install" not in ended.stderr:
        sys.exit(f"this does not say what to install: {ended.stderr}")
    if "hunter2" in ended.stderr:
        sys.exit("this shows a password")
