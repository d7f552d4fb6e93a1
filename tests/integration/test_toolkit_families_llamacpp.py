"""GGUF files of families as the toolkit writes them, run by llama.cpp itself: names, layouts and keys are its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xllamacpp

from tests.support.hugging_face_fixtures import DATA, NAMES, Fixture, run, write_gguf
from toolkit.simulate.network import Network

LENGTHS = (1, 9, 14)  # Windows of 5 and 6 are passed by the second.
CONTEXT = 256
EXACT, LOOKED_UP = 1e-4, 1e-2  # 1.9e-5 and 3.4e-3 were reached; llama.cpp has GELU in a table of half precision.
WINDOWED = {"phi3-window", "phi3-long"}  # llama.cpp leaves out the window of phi3.
OWN_SCALE = {"gemma2-scaled"}  # Scales of scores that llama.cpp reads from no file.


def log_probabilities(path: Path, prompt: list[int], vocabulary: int) -> np.ndarray:
    """Return those of what follows the first tokens of the prompt, (lengths, vocabulary)."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = CONTEXT
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.fit_params = False
    parameters.warmup = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = 0
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    found = np.full((len(LENGTHS), vocabulary), np.nan)
    for row, length in enumerate(LENGTHS):
        asked = {"prompt": prompt[:length], "n_predict": 1, "n_probs": vocabulary, "cache_prompt": False, "post_sampling_probs": False}
        for one in server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[row, one["id"]] = one["logprob"]
    return found


@pytest.mark.parametrize("name", sorted(set(NAMES) - WINDOWED - OWN_SCALE))
def test_llama_cpp_computes_the_same_from_a_gguf_file(name: str, tmp_path: Path) -> None:
    fixture = Fixture(name)
    write_gguf(fixture, tmp_path / "model.gguf")
    prompt = np.load(DATA / f"{name}.logits.npz")["prompt"]
    logits = run(Network(fixture, fixture.family), prompt, [len(prompt)], CONTEXT)[[length - 1 for length in LENGTHS]].astype(np.float64)
    ours = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    theirs = log_probabilities(tmp_path / "model.gguf", prompt.tolist(), ours.shape[1])
    assert (theirs.argmax(axis=1) == ours.argmax(axis=1)).all()
    gelu = name.startswith(("gemma", "phi2"))
    assert np.abs(theirs - ours).max() <= (LOOKED_UP if gelu else EXACT)
