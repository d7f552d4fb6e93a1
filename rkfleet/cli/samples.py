"""The sample models of `rkfleet up --samples` and of the demo, pushed as a person would push them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rkfleet.errors import FailedPrecondition
from rkfleet.sample import SMOLLM2, Sample, ensure_sample

__all__ = ["push_command", "push_samples", "run_command"]


async def push_samples(kubeconfig: Path) -> None:
    """Fetch and push every sample model; what is there already is left alone.

    Raises:
        Unavailable: A sample could not be fetched.
        FailedPrecondition: A push failed; the message is the command's last line.
    """
    file = await ensure_sample(SMOLLM2)
    await run_command(push_command(SMOLLM2, file, kubeconfig))


def push_command(sample: Sample, file: Path, kubeconfig: Path) -> list[str]:
    """Return the `rkfleet model push` command of a sample."""
    variant = f"name={sample.variant},soc=any,dtype={sample.dtype},runtime=llamacpp,context={sample.context_tokens}"
    return [
        sys.executable, "-m", "rkfleet.cli.main", "model", "push", str(file), "--name", sample.model, "--variant", variant,
        "--family", sample.family, "--parameters", sample.parameters, "--license", sample.license, "--kubeconfig", str(kubeconfig),
    ]  # fmt: skip


async def run_command(command: list[str]) -> str:
    """Run a command to its end and return what it printed; when the caller is cancelled, the command is killed.

    Raises:
        FailedPrecondition: It ended with another status than 0.
    """
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    try:
        printed, complained = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = (complained or printed).decode(errors="replace").strip().rpartition("\n")[2]
        raise FailedPrecondition(f"`{' '.join(command[2:5])} …` ended with status {child.returncode}: {last}")
    return printed.decode()
