"""Runs steps of a vendor's toolkit in the vendor's own interpreter, and tells how they go.

In: one line of JSON on standard input, a job: `{"probe": [distributions], "cuda": bool}`, or `{"module", "class", "arguments", "steps"}`,
where a step has `stage`, `call` and `arguments`, and `inputs` and `output` if it is an inference. Out: JSON lines on the descriptor of the
first argument: `stage`, `value` and, last, `probed`, `failed`, `raised` or `done`. Standard output and error are the vendor's.

Standard input stays open for as long as the parent wants the work: when it ends, this process group is killed, so that no conversion
outlives a parent that died. Python 3.8 and the standard library only; numpy is there where an inference is. Started by the directory, so
that nothing of rkfleet is on its path.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from importlib import import_module, metadata
from typing import Any, Callable  # noqa: UP035 (Python 3.8 has it here)


def main() -> None:
    """Do the job and tell its end."""
    descriptor = int(sys.argv[1])
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_the_parent, daemon=True).start()

    def tell(event: str, **fields: Any) -> None:
        os.write(descriptor, json.dumps({"event": event, **fields}).encode() + b"\n")

    if "probe" in job:
        tell("probed", **_probe(job))
    else:
        _convert(job, tell)
    sys.stdout.flush()


def _die_with_the_parent() -> None:
    """Wait for the end of standard input. It is read without Python's lock on it, which would keep the interpreter from ending."""
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _probe(job: dict[str, Any]) -> dict[str, Any]:
    versions = {}
    for name in job["probe"]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = None
    if job.get("cuda"):
        try:
            cuda = bool(import_module("torch").cuda.is_available())
        except Exception:  # noqa: BLE001 (whatever keeps torch from being imported keeps it from computing)
            cuda = False
    found = os.uname()
    return {
        "python": "%d.%d" % sys.version_info[:2],  # noqa: UP031 (as old as the interpreter may be)
        "machine": found.machine,
        "system": found.sysname,
        "versions": versions,
        "cuda": cuda,
    }


def _convert(job: dict[str, Any], tell: Callable[..., None]) -> None:
    stage = "import"
    try:
        tell("stage", stage=stage)
        vendor = getattr(import_module(job["module"]), job["class"])(**job["arguments"])
        for step in job["steps"]:
            stage = step["stage"]
            tell("stage", stage=stage)
            if "inputs" in step:
                _infer(vendor, step, tell)
                continue
            code = getattr(vendor, step["call"])(**step["arguments"])
            if code != 0:
                tell("failed", stage=stage, call=step["call"], code=repr(code)[:200])
                return
    except BaseException as error:
        traceback.print_exc()
        tell("raised", stage=stage, type=type(error).__name__, message=str(error)[:2000])
        if not isinstance(error, Exception):
            raise
        return
    tell("done")


def _infer(vendor: Any, step: dict[str, Any], tell: Callable[..., None]) -> None:
    """Run arrays through the model as it was built, and write what comes out."""
    numpy = import_module("numpy")
    inputs = [numpy.load(path, allow_pickle=False) for path in step["inputs"]]
    outputs = getattr(vendor, step["call"])(inputs=inputs, **step["arguments"])
    if outputs is None:
        raise RuntimeError("the simulator returned nothing")
    for index, output in enumerate(outputs):
        array = numpy.asarray(output)
        tell("value", index=index, shape=list(array.shape), dtype=str(array.dtype))
    numpy.savez(step["output"], *[numpy.asarray(output) for output in outputs])


if __name__ == "__main__":
    main()
