"""What goes wrong in the stand-ins, by stage, from `FAKE_VENDOR`: JSON like `{"build": "-1"}`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def fault(stage: str) -> str:
    """Do what is to happen in a stage; return the word of what the caller has to do itself."""
    what = json.loads(os.environ.get("FAKE_VENDOR", "{}")).get(stage, "")
    word, _, rest = what.partition(":")
    if word == "raise":
        name, _, message = rest.partition(":")
        raise {"RuntimeError": RuntimeError, "KeyError": KeyError, "ModuleNotFoundError": ModuleNotFoundError}[name](message)
    if word == "signal":
        os.kill(os.getpid(), getattr(signal, rest))
    if word == "exit":
        os._exit(int(rest))
    if word == "say":
        print(rest, flush=True)
    if word == "hang":
        if rest:  # Where our processes are told: a grandchild that holds the pipes, and ourselves.
            grandchild = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
            part = Path(rest).with_suffix(".part")
            part.write_text(f"{os.getpid()} {grandchild.pid}")
            part.replace(rest)
        threading.Event().wait()
    if word == "leave":  # A grandchild that outlives us and holds the pipes.
        grandchild = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
        Path(rest).write_text(str(grandchild.pid))
    return word
