"""llama.cpp in a worker: a GGUF file behind llama.cpp's own HTTP listener, by way of xllamacpp.

In: a `Load` from the control pipe. Out: a listener on a free loopback port that demands the given key. Imported by the worker process
only (`agent/workers/child.py`); the agent never maps the library.

Tokens leave through llama.cpp's listener instead of through Python: a request ends when its connection is closed, which is the only
way to end one during prefill, since the library calls nothing back before the first token.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any, Final

import xllamacpp

from agent.workers.gguf import MAGIC, POOLING_LAST, POOLING_NONE, declared_pooling
from agent.workers.pipe import Load
from rkfleet import simulated
from rkfleet.errors import FailedPrecondition, Internal

__all__ = ["PREFILL_BATCH_TOKENS", "LlamaCpp", "load"]

# llama.cpp looks at cancelled requests and at new ones between two batches, so two batches must take less than the second in which a
# cancelled request is to be gone. Measured with SmolLM2-135M Q4_1 on one thread of a Xeon at 2.8 GHz with AVX2, xllamacpp 2026.10, best of
# 24, ms per prompt token at 16, 32, 64 and 256 tokens: 9.8, 8.8, 8.9, 9.0. So 32 cost nothing, take 0.3 s there, and leave room for a core
# of half that speed; 16 would cost a tenth.
PREFILL_BATCH_TOKENS: Final = 32

LOG_WARNINGS: Final = 2  # llama.cpp's verbosity: 1 errors, 2 warnings. Above that it would log a line per request.

# Connections that are served besides the running requests: one that is being closed while its successor arrives, one for `probe`.
SPARE_HTTP_THREADS: Final = 2


class LlamaCpp:
    """A loaded model. The object must live as long as the listener should."""

    def __init__(self, server: Any, api_key: str) -> None:
        self._server: Final = server
        self._api_key: Final = api_key
        self.endpoint: Final[str] = server.listening_address

    def probe(self) -> None:
        """Return once llama.cpp's inference loop has answered.

        The list of adapters is a task for that loop, worked off between two batches: it took 5 s while a batch did. Health, metrics and
        slots are answered beside the loop (milliseconds in the same moment) and would beat for a dead one.

        Raises:
            Internal: The listener refused; this library is not the one that this backend was made for.
        """
        listener = http.client.HTTPConnection(self.endpoint.removeprefix("http://"))
        try:
            listener.request("GET", "/lora-adapters", headers={"Authorization": f"Bearer {self._api_key}"})
            status = listener.getresponse().status
        finally:
            listener.close()
        if status != 200:
            raise Internal(f"llama.cpp answered {status} to the question that shows whether it lives")


def load(load: Load) -> LlamaCpp:
    """Load a model and listen; returns when the first request can be answered.

    Raises:
        FailedPrecondition: The file is no model of this runtime or cannot be loaded; llama.cpp said why on standard error.
    """
    _check_magic(Path(load.model_path))
    parameters = _parameters(load)
    _let_embed(parameters, load)
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        raise FailedPrecondition(f"llama.cpp did not load {load.model_path}") from error
    return LlamaCpp(server, load.api_key)


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(simulated.MAGIC))
    except OSError as error:
        raise FailedPrecondition(f"model file {path} cannot be read: {error.strerror}") from error
    if head == simulated.MAGIC:
        raise FailedPrecondition(f"model file {path} is a placeholder for simulated boards; backend llamacpp runs real models only")
    if not head.startswith(MAGIC):
        raise FailedPrecondition(f"model file {path} is no GGUF file: it starts with {head[:4]!r}, not {MAGIC!r}")


def _let_embed(parameters: Any, load: Load) -> None:
    """Have the listener answer embeddings beside everything else.

    A model that was made for embeddings says how its vectors are pooled, and must see each text in one batch unless it pools by the last
    token; its requests are then noticed to be cancelled after a whole text only. Any other model gives the normalised last hidden state
    of the last token, which needs no batch of its own. llama.cpp computes embeddings for requests that ask for them only: SmolLM2-135M
    Q4_1 answered with the same texts, at 1.00 times the prefill and 0.99 times the decode speed (medians of 10 pairs in turn, x86-64, one
    thread, xllamacpp 2026.10).
    """
    parameters.embedding = True
    declared = declared_pooling(Path(load.model_path))
    if declared in (None, POOLING_NONE):
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    elif declared != POOLING_LAST:
        parameters.n_batch = parameters.n_ubatch = load.context_tokens


def _parameters(load: Load) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = load.model_path
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [load.api_key]
    parameters.n_threads_http = load.max_concurrent + SPARE_HTTP_THREADS

    # Every request has its own context window: the total is split into equal slots.
    parameters.n_parallel = load.max_concurrent
    parameters.n_ctx = load.context_tokens * load.max_concurrent
    parameters.kv_unified = False
    # Without a shift a full context ends the answer (finish_reason length) instead of forgetting its beginning.
    parameters.ctx_shift = load.shift
    parameters.n_keep = load.keep_tokens
    parameters.fit_params = False  # load what was declared or fail; never a smaller context in silence
    parameters.n_batch = PREFILL_BATCH_TOKENS
    parameters.n_ubatch = PREFILL_BATCH_TOKENS
    parameters.cpuparams.n_threads = load.threads
    parameters.cpuparams_batch.n_threads = load.threads

    # Memory stays what the Model reserves: no cache of old prompts beside the slots (the default may take 8 GiB).
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.n_ctx_checkpoints = 0

    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.verbosity = LOG_WARNINGS
    return parameters
