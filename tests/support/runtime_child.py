"""A process that loads a model and runs requests: `python -m tests.support.runtime_child LIBRARY GENERATION MODEL REQUESTS`.

It prints `loaded` and then the text of each request, one a line; a fault of the library ends it as it would end a worker.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agent.workers.rkllm.library import Library, LoadParameters, Prompt, Result, RunOptions

if __name__ == "__main__":
    path, generation, model_path, requests = sys.argv[1:]
    pieces: list[Result] = []
    library = Library.open(Path(path), generation)  # type: ignore[arg-type]
    model = library.init(LoadParameters(model_path=model_path, max_context_tokens=512), pieces.append)
    print("loaded", flush=True)
    for request in range(1, int(requests) + 1):
        model.run(Prompt("x"), RunOptions(), request)
        print(b"".join(piece.text for piece in pieces).decode(), flush=True)
        pieces.clear()
    model.destroy()
