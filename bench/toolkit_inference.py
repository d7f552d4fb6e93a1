"""The toolkit's inference in numpy against transformers and torch: tokens per second of prefill and decode, peak memory.

`python -m bench.toolkit_inference [--peer-python PYTHON] [--rounds N] [--by-cpu]`. PYTHON has torch and transformers, and may come from
`$RKFLEET_TORCH_PYTHON`; without one only our side is told. Both sides are child processes with the same weights: the sample model,
SmolLM2 135M, in float32, written as safetensors for the peer with rows of query and key in Hugging Face's order. Both get the same two
jobs a round, one side at a time, in turn: 512 tokens of prefill, and 128 new greedy tokens after 64. Threads are those of each library's
default; `--by-cpu` gives each one thread and counts CPU seconds instead of wall time. In the same run the logits behind the prompt of 512
tokens must agree, and the greedy tokens of both.

Ours runs without OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE, which choose a kernel for another machine; the report says which kernel ran.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.report import Goal, Result, finish, interleave, result
from rkfleet.clock import Clock, SystemClock
from rkfleet.sample import ensure_sample
from toolkit.loading import ModelSource, open_model
from toolkit.session.inputs import Tokens
from toolkit.session.sampling import Sampling
from toolkit.session.session import Finish, Piece, Request, Session
from toolkit.simulate.network import Network

ROUNDS: Final = 7
PREFILL_TOKENS: Final = 512
DECODE_PROMPT_TOKENS: Final = 64
NEW_TOKENS: Final = 128
RATIO_MIN: Final = 0.8
LOGITS_DIFFERENCE_MAX: Final = 1e-2  # Logits reach 30; sums of thousands of float32 in another order differ by some 1e-4.
CHOSEN_FOR_ANOTHER_MACHINE: Final = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
BY_CPU: Final = "RKFLEET_BENCH_BY_CPU"  # Tells the children.
MIB: Final = 1 << 10  # KiB, as getrusage counts.


def export(source: ModelSource, directory: Path) -> None:
    """Write the model as transformers reads a LlamaForCausalLM."""
    from safetensors.numpy import save_file

    sizes = source.hyperparameters
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    weights = {"model.embed_tokens.weight": source.read("token_embd.weight"), "model.norm.weight": source.read("output_norm.weight")}
    for layer in range(sizes.layers):
        for ours, theirs in names.items():
            value = source.read(f"blk.{layer}.{ours}.weight")
            heads = {"attn_q": sizes.heads, "attn_k": sizes.kv_heads}.get(ours)
            if heads:  # Pairs that turn together are neighbours here, halves there.
                value = value.reshape(heads, -1, 2, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            weights[f"model.layers.{layer}.{theirs}.weight"] = np.ascontiguousarray(value)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": sizes.norm_epsilon,
        "rope_theta": sizes.rope_base,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))


class CpuClock(SystemClock):
    """A clock of this process's CPU seconds."""

    def monotonic(self) -> float:
        """Return them."""
        return time.process_time()


def serve(model: Path) -> None:
    """Answer jobs from standard input, as `_torch_inference.py` does."""
    source = open_model(model)
    clock = CpuClock() if os.environ.get(BY_CPU) else SystemClock()
    session = Session(Network(source, source.family), None, clock, context=PREFILL_TOKENS + DECODE_PROMPT_TOKENS + NEW_TOKENS)
    for line in sys.stdin:
        job = json.loads(line)
        session.clear()
        if job.get("logits"):
            np.save(job["logits"], session.logits(Tokens(job["prompt"]))[-1])
            print(json.dumps({"tokens": []}), flush=True)
            continue
        greedy = Sampling(temperature=0.0, repeat_penalty=1.0)
        request = Request(input=Tokens(job["prompt"]), sampling=greedy, max_new_tokens=max(job["new"] + 1, 1))
        found = list(session.generate(request))
        end = found[-1]
        assert isinstance(end, Finish)
        tokens = [piece.token for piece in found if isinstance(piece, Piece)][: job["new"]]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = {"prefill_s": end.prefill_seconds, "decode_s": end.decode_seconds, "tokens": tokens, "peak_kib": peak, "kernel": kernel()}
        print(json.dumps(answer), flush=True)


def kernel() -> str:
    """Return which kernel and how many threads numpy's OpenBLAS runs."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "openblas" in line and ".so" in line:
            library = ctypes.CDLL(line.split(maxsplit=5)[5])
            name = library.scipy_openblas_get_corename64_
            name.restype = ctypes.c_char_p
            return f"OpenBLAS {name().decode()}, {library.scipy_openblas_get_num_threads64_()} threads"
    return "not OpenBLAS"


class Side:
    """A child that answers jobs."""

    def __init__(self, command: Sequence[str], environ: dict[str, str]) -> None:
        self._child: Final = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        self.last: dict[str, Any] = {}

    def ask(self, **job: Any) -> dict[str, Any]:
        """Return the answer to a job."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(job) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended with status {self._child.wait()}")
        self.last = json.loads(line)
        return self.last

    def close(self) -> None:
        """Let the child end."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


def measure(directory: Path, model: Path, peer_python: str, rounds: int, *, by_cpu: bool) -> list[Result]:
    random = np.random.default_rng(1)
    source = open_model(model)
    prompt = random.integers(0, source.hyperparameters.vocabulary, PREFILL_TOKENS).tolist()
    short = prompt[:DECODE_PROMPT_TOKENS]
    environ = {name: value for name, value in os.environ.items() if name not in CHOSEN_FOR_ANOTHER_MACHINE}
    if by_cpu:
        environ |= {BY_CPU: "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    sides = [Side([sys.executable, "-m", "bench.toolkit_inference", "--serve", str(model)], environ)]
    if peer_python:
        export(source, directory)
        # The peer's interpreter must not find our packages.
        bare = {name: value for name, value in environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        sides.append(Side([peer_python, str(Path(__file__).with_name("_torch_inference.py")), str(directory)], bare))
    try:
        return _measured(directory, sides, prompt, short, rounds, by_cpu=by_cpu)
    finally:
        for side in sides:
            side.close()


def _measured(directory: Path, sides: list[Side], prompt: list[int], short: list[int], rounds: int, *, by_cpu: bool) -> list[Result]:
    difference = 0.0
    rows = []
    for at, side in enumerate(sides):
        path = directory / f"logits-{at}.npy"
        side.ask(prompt=prompt, new=0, logits=str(path))
        rows.append(np.load(path))
        side.ask(prompt=short, new=NEW_TOKENS)
    answers = [side.last["tokens"] for side in sides]
    if len(sides) > 1:
        difference = float(np.max(np.abs(rows[0] - rows[1])))
        if difference > LOGITS_DIFFERENCE_MAX or answers[0] != answers[1]:
            raise SystemExit(f"the sides disagree: logits by {difference}, tokens {answers}")

    def prefill(side: Side) -> float:
        return PREFILL_TOKENS / float(side.ask(prompt=prompt, new=0)["prefill_s"])

    def decode(side: Side) -> float:
        return NEW_TOKENS / float(side.ask(prompt=short, new=NEW_TOKENS)["decode_s"])

    found = []
    goal = Goal("ratio", ">=", RATIO_MIN) if len(sides) > 1 else None
    for name, job in ((f"prefill of {PREFILL_TOKENS} tokens", prefill), (f"{NEW_TOKENS} new tokens after {DECODE_PROMPT_TOKENS}", decode)):
        measured = interleave(rounds, *[lambda side=side, job=job: job(side) for side in sides])  # type: ignore[misc]
        peer = f"transformers, {sides[1].last['kernel']}, {sides[1].last['threads']} threads" if len(sides) > 1 else ""
        label = f"{name} (numpy, {sides[0].last['kernel']}{', by CPU seconds' if by_cpu else ''})"
        found.append(result(label, "tokens/s", measured[0], peer=peer, theirs=measured[1] if len(sides) > 1 else (), goal=goal))
    peaks = [[side.last["peak_kib"] / MIB] for side in sides]
    theirs = peaks[1] if len(sides) > 1 else ()
    found.append(result("peak resident memory", "MiB", peaks[0], peer="transformers" if theirs else "", theirs=theirs))
    if theirs:
        limit = Goal("value", "<=", LOGITS_DIFFERENCE_MAX)
        found.append(result(f"largest difference of logits after {PREFILL_TOKENS} tokens", "", [difference], goal=limit))
    return found


def main(clock: Clock) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", default=os.environ.get("RKFLEET_TORCH_PYTHON", ""), help="interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--by-cpu", action="store_true", help="one thread each, and tokens per CPU second: for a machine that others use")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return 0
    if not asked.peer_python:
        print("no peer: give --peer-python PATH, an interpreter with torch and transformers; only our side is measured", file=sys.stderr)
    model = asyncio.run(ensure_sample())
    with tempfile.TemporaryDirectory() as directory:
        return finish("toolkit_inference", measure(Path(directory), model, asked.peer_python, asked.rounds, by_cpu=asked.by_cpu), clock)


if __name__ == "__main__":
    sys.exit(main(SystemClock()))
