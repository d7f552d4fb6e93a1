"""llama.cpp's own HTTP listener and nothing else: the peer of `bench.chat`.

`python -m bench._listener MODEL CONTEXT_TOKENS THREADS` prints the base URL and serves until standard input ends. Everything that is not
named here is the library's default; the agent's workers set more (see `agent/workers/llamacpp.py`), and that is part of the comparison.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import xllamacpp


def main(arguments: Sequence[str]) -> int:
    model, context_tokens, threads = arguments
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = 1
    parameters.n_ctx = int(context_tokens)
    parameters.cpuparams.n_threads = int(threads)
    parameters.cpuparams_batch.n_threads = int(threads)
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the library's own clean-up waits for open connections


if __name__ == "__main__":
    main(sys.argv[1:])
