"""Serves one application by uvicorn until its input ends: `python -m benchmarks.served MODULE:FUNCTION [LOOP HTTP]`.

The function makes the application, and is given the address of the database. The port is printed.
"""

import gc
import os
import pkgutil
import socket
import sys
import threading

import uvicorn

ADDRESS = "BENCHMARKED_DATABASE"


def main() -> None:
    app = pkgutil.resolve_name(sys.argv[1])(os.environ.get(ADDRESS, ""))
    loop, http = sys.argv[2:] or ("uvloop", "httptools")
    config = uvicorn.Config(app, loop=loop, http=http, access_log=False, log_level="warning")
    server = uvicorn.Server(config)

    def stop_at_end() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=stop_at_end, daemon=True).start()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)  # a client that connects before the application has started waits
        print(listener.getsockname()[1], flush=True)
        gc.collect()
        gc.freeze()  # or each p99 would be a full collection of all modules, of 30 ms, whatever the pool does
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
