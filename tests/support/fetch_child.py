"""A process that fetches one blob and says how far it is, for a test to kill: `python fetch_child.py DIR CA SOURCE DIGEST SIZE CHUNK`.

The token comes on standard input, so that it stands in no process list.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

from agent.artifacts.cache import Cache
from agent.artifacts.fetch import Fetcher
from rkfleet.assignment import AssignedFile
from rkfleet.disk import SystemDisk
from rkfleet.metrics import Metrics
from rkfleet.session import Grant


async def main() -> None:
    directory, ca, source, digest, size, chunk = sys.argv[1:]
    metrics, disk = Metrics("agent"), SystemDisk()
    grant = Grant(request_id=1, sources=(source,), token=sys.stdin.readline().strip())
    tls = ssl.create_default_context(cafile=ca)
    fetcher = Fetcher(Cache(Path(directory), 0, disk, metrics), tls, disk, metrics, int(chunk))
    file = AssignedFile(path="model.gguf", digest=digest, size_bytes=int(size))
    await fetcher.fetch([file], grant, lambda done, _total: print(done, flush=True))


asyncio.run(main())
