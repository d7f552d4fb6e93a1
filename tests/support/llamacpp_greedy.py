"""Run as a program: what llama.cpp answers to token ids, taking the likeliest token each time.

In: a GGUF file, a number of tokens, a JSON list of ids, and perhaps a GGUF adapter. Out: a JSON list of ids on standard output.
A process of its own, because a test must not load the library into its own.
"""

from __future__ import annotations

import http.client
import json
import sys
from typing import Any

import xllamacpp


def answer(model: str, count: int, prompt: list[int], adapter: str) -> list[int]:
    parameters: Any = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = 256
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    parameters.ui = False
    parameters.verbosity = 1
    parameters.cpuparams.n_threads = 1
    if adapter:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = adapter, 1.0
        parameters.lora_adapters = [info]
    server = xllamacpp.Server(parameters)
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    body = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True, "ignore_eos": True, "cache_prompt": False}
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    answered = json.loads(connection.getresponse().read())
    connection.close()
    return list(answered["tokens"])


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "")))
