"""An agent that can be killed: starts one worker, prints its process id when it has got as far as asked, and waits.

`python -m tests.support.worker_parent MODEL started|loaded`
"""

import asyncio
import sys
from pathlib import Path

from tests.support.serving import llamacpp, spec_of


async def main(model: Path, moment: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        worker = await llamacpp().start(spec_of(model), tasks, lambda: None, lambda _text: None)
        if moment == "loaded":
            await worker.loaded()
        print(worker.pid, flush=True)
        await worker.exited()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
