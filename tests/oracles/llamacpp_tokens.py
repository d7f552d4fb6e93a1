"""Writes tests/data/toolkit/llamacpp_tokens.json and pieces.model: what llama.cpp makes of a zoo of texts.

The vocabulary of the sample model stands in a tiny random model, under every name of a splitting into words; a small SentencePiece model,
trained here, in another. llama.cpp's own listener tokenizes them. Run with the project's interpreter:

    python tests/oracles/llamacpp_tokens.py
"""

from __future__ import annotations

import asyncio
import http.client
import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import xllamacpp

from rkfleet.sample import ensure_sample
from toolkit.checkpoint.gguf import GgufCheckpoint
from toolkit.tokens.pretokenizers import PATTERNS
from toolkit.tokens.sentencepiece import vocabulary_from_model
from toolkit.tokens.settings import Added, Settings
from toolkit.tokens.vocabulary import from_metadata

OUT = Path(__file__).parent.parent / "data" / "toolkit"
TEXTS = [
    "Hello world",
    "",
    " ",
    "  leading and   inner    runs \t of\n\n\nspace   ",
    "It's they'RE we'll I'D don't 'tis ''s",
    "1 12 123 1234 12345 3.14159 ½ ²³ Ⅷ ٣٤ 一二三",
    "def f(x):\n    return x**2  # café\n\tif (a&&b) { c->d; }\r\n",
    "naïve Ünïcödé Привет мир שלום العربية 你好，世界！ こんにちは 안녕하세요",  # noqa: RUF001
    "👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️ e\u0301 \u200b\u00a0\u3000x",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|> b <|endoftext|>c",
    "https://example.org/a_b?c=1&d=%20#x $100,000.00 +1 ^~|=<>",
    "word" * 30 + " " + "." * 17 + "!?",
    "\x00\x01\x7f tab\tend",
    "\ufffd\U0010ffff 𝔘𝔫𝔦",  # noqa: RUF001
    "▁under_score ▁▁x",
]
TRAINING = [
    "The boards run language models; the fleet rolls them out, one board after another.",
    "A tokenizer makes numbers of words, and words of numbers: 0 1 2 3 4 5 6 7 8 9.",
    "def f(x): return x + 1",
    "Schöne Grüße aus dem Süden, naïve café, 你好 世界",
    "The quick brown fox jumps over the lazy dog, again and again, while the model answers.",
] * 20


def tiny(path: Path, vocabulary: dict[str, Any], pieces: int) -> None:
    """Write a random model around a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in vocabulary.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    random = np.random.default_rng(1)
    writer.add_tensor("token_embd.weight", random.standard_normal((pieces, 32)).astype(np.float16))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", random.standard_normal((32, 32)).astype(np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tokenized(path: Path) -> list[dict[str, Any]]:
    """Ask llama.cpp."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = 64
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    parameters.ui = False
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    found = []
    for text in TEXTS:
        for special in (True, False):
            connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
            body = json.dumps({"content": text, "add_special": special, "parse_special": special})
            connection.request("POST", "/tokenize", body, {"Content-Type": "application/json"})
            found.append({"text": text, "special": special, "tokens": json.loads(connection.getresponse().read())["tokens"]})
            connection.close()
    return found


def main() -> None:
    """Write both files."""
    OUT.mkdir(parents=True, exist_ok=True)
    sample = GgufCheckpoint(asyncio.run(ensure_sample())).metadata
    keys = {key: value for key, value in sample.items() if key.startswith("tokenizer.ggml.")}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.gguf"
        for name in PATTERNS:
            tiny(path, {**keys, "tokenizer.ggml.pre": name}, len(keys["tokenizer.ggml.tokens"]))
            results[name] = tokenized(path)
        corpus = Path(place) / "corpus.txt"
        corpus.write_text("\n".join(TRAINING))
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(Path(place) / "pieces"),
            vocab_size=420,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["<sep>"],
            num_threads=1,
        )
        model = (Path(place) / "pieces.model").read_bytes()
        (OUT / "pieces.model").write_bytes(model)
        added = (Added(420, "<|im_start|>", special=True), Added(421, "<|im_end|>", special=True))
        settings = Settings(tokens={}, added=added, end_ids=(), add_beginning=None, add_end=False, tokenizer_class="")
        vocabulary = vocabulary_from_model(OUT / "pieces.model", settings)
        tiny(path, vocabulary.to_metadata(422), 422)
        results["(pieces)"] = tokenized(path)
    # The first name of those that split alike stands for them all; that llama.cpp takes them alike was seen when this was written.
    kept: dict[str, Any] = {}
    for name, answers in results.items():
        same = next((other for other, theirs in kept.items() if theirs == answers), None)
        kept[name] = answers if same is None else same
    kept["(vocabulary)"] = {"sample_pieces": len(from_metadata(sample).pieces)}
    (OUT / "llamacpp_tokens.json").write_text(json.dumps(kept, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
