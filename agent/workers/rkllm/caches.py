"""Saved prompts: KV states that the library wrote to files, kept by whom they belong to.

In: a directory of this model and runtime, a byte limit, and the text of a prompt. Out: the file whose state begins the prompt, or a name
for the library to write to. Called by `runner.py` in its thread.

A file's name is a hash of everything that its content depends on (model, library, tenant, adapter, template, the client's key), then the
length and a digest of the prompt that it holds: a file is found by whom it belongs to and used only if the new prompt begins with its
text. The library writes to a temporary name, which is renamed when the run has succeeded, and reads from another one, which is renamed back
after the run: a file that ended the process with it, after a loss of power for example, is deleted at the next start instead of ending that
one too. No text of a prompt is stored beside the state.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.workers.rkllm.conversation import Identity, name_of
from rkfleet.errors import FailedPrecondition

__all__ = ["Caches", "model_identity"]

SUFFIX: Final = ".kv"
TEMPORARY: Final = "writing" + SUFFIX + ".part"  # one run at a time, so one name
IN_USE: Final = "reading" + SUFFIX + ".part"
DIGEST_CHARACTERS: Final = 32


class Caches:
    """The saved prompts of one worker. The least recently used go first."""

    def __init__(self, directory: str, bytes_max: int, model: str) -> None:
        """Take where they are, how many bytes they may take, and what they are states of.

        Raises:
            FailedPrecondition: The directory cannot be made.
        """
        self._directory: Final = Path(directory)
        self._bytes_max: Final = bytes_max if directory else 0
        self._model: Final = model
        if not self.enabled:
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.temporary.unlink(missing_ok=True)
            self._in_use.unlink(missing_ok=True)
        except OSError as error:
            raise FailedPrecondition(f"directory {directory} of saved prompts cannot be used: {error.strerror}") from error
        self._evict()

    @property
    def enabled(self) -> bool:
        """Return whether prompts may be saved at all."""
        return self._bytes_max > 0

    @property
    def temporary(self) -> Path:
        """Return where the library writes the prompt of the run in progress."""
        return self._directory / TEMPORARY

    @property
    def _in_use(self) -> Path:
        return self._directory / IN_USE

    def has_room(self) -> bool:
        """Return whether the disk holds as much as these files may take: a library that finds it full fails the request instead."""
        try:
            used = sum(one.stat().st_size for one in self._directory.glob(f"*{SUFFIX}"))
            return shutil.disk_usage(self._directory).free >= self._bytes_max - used
        except OSError:
            return False

    def find(self, identity: Identity, key: str, text: bytes) -> Path | None:
        """Return the file whose prompt `text` begins with, and count it as used; None if there is none."""
        for path in self._of(identity, key):
            _, size, digest = path.stem.split("-")
            if int(size) <= len(text) and _digest(text[: int(size)]) == digest:
                try:
                    os.utime(path)
                except OSError:
                    return None
                return path
        return None

    @contextlib.contextmanager
    def using(self, path: Path) -> Iterator[Path]:
        """Have a found file under another name for the block, in which `drop` may take it away.

        Raises:
            OSError: It cannot be renamed.
        """
        path.rename(self._in_use)
        try:
            yield self._in_use
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._in_use.rename(path)

    def keep(self, identity: Identity, key: str, text: bytes) -> None:
        """Keep what the library wrote to `temporary` as the state of `text`, instead of an older one of the same key.

        Raises:
            OSError: The file is not there or cannot be renamed.
        """
        older = self._of(identity, key)
        path = self._directory / f"{name_of(identity, self._model, key)}-{len(text)}-{_digest(text)}{SUFFIX}"
        self.temporary.rename(path)
        for one in older:
            if one != path:
                one.unlink(missing_ok=True)
        self._evict()

    def drop(self, path: Path) -> None:
        """Delete a file that the library refused, or that a failed run left."""
        path.unlink(missing_ok=True)

    def _of(self, identity: Identity, key: str) -> list[Path]:
        return list(self._directory.glob(f"{name_of(identity, self._model, key)}-*-*{SUFFIX}"))

    def _evict(self) -> None:
        files = sorted(((one.stat().st_mtime_ns, one.stat().st_size, one) for one in self._directory.glob(f"*{SUFFIX}")), reverse=True)
        kept_bytes = 0
        for _, size, path in files:
            kept_bytes += size
            if kept_bytes > self._bytes_max:
                path.unlink(missing_ok=True)


def model_identity(model_path: str, library: str, library_version: str, generation: str) -> str:
    """Return what tells this model file and this library from all others: states of one are garbage to another.

    Raises:
        FailedPrecondition: The model file or the library cannot be read.
    """
    words = [library_version, generation]
    for path in (model_path, library):
        try:
            facts = Path(path).stat()
        except OSError as error:
            raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from error
        words += [str(Path(path).resolve()), str(facts.st_size), str(facts.st_mtime_ns)]
    return "\n".join(words)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:DIGEST_CHARACTERS]
