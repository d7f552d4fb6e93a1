"""Writes an installation of the agent as a service, and takes it away again.

In: a plan of entries and the root below which they go. Out: files on disk, each said in one line, and a service where systemd runs. What
was written stands in `/etc/rkfleet/installed.json` with its digest; `uninstall` removes exactly that, and leaves what somebody has changed
since. Both may be repeated: what is as it should be is left alone. Called by `agent/packaging/config.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agent.board.clock_wire import RECORD_NAME
from agent.packaging.plan import AGENT_UNIT, DATA_DIR, MANIFEST, STANDALONE_DIR, USER, Entry
from rkfleet.errors import FailedPrecondition, Unavailable

__all__ = ["RUNNING", "Installer", "unit_files"]

COMMAND_SECONDS_MAX: Final = 120.0  # A stop may take TimeoutStopSec of the unit.
RUNNING: Final = Path("/run/systemd/system")  # Source: sd_booted(3)


class _Written(msgspec.Struct, frozen=True):
    """One entry that was written: the hex sha256 of its content, or of its target for a link."""

    path: str
    sha256: str


class _Manifest(msgspec.Struct, frozen=True):
    entries: tuple[_Written, ...] = ()
    directories: tuple[str, ...] = ()


def unit_files() -> dict[str, str]:
    """Return every unit of this package, by name."""
    return {path.name: path.read_text() for path in Path(__file__).parent.glob("*.service")}


def state_directories() -> tuple[str, ...]:
    """Return where the services of this package keep what they know."""
    found = (re.findall(r"(?m)^StateDirectory=(\S+)$", text) for text in unit_files().values())
    return tuple(sorted(f"/var/lib/{name}" for names in found for name in names))


class Installer:
    """One root: `/`, or that of an image."""

    def __init__(self, root: Path, say: Callable[[str], None], *, dry_run: bool = False, systemd: bool = False) -> None:
        """Take the root, whom to tell each step, whether nothing must be touched, and whether the systemd that runs is that of the root."""
        self._root: Final = root
        self._say: Final = say
        self._dry_run: Final = dry_run
        self._systemd: Final = systemd
        self._made: Final[list[str]] = []

    def install(self, entries: Sequence[Entry], *, token: str = "") -> None:
        """Make everything as the entries say, remove what an earlier installation wrote and this one does not, and start the service.

        Args:
            entries: What should be there.
            token: Path among them whose content is a secret.

        Raises:
            FailedPrecondition: A file cannot be written, or systemd refuses.
        """
        before = self._manifest()
        known = {one.path: one.sha256 for one in before.entries}
        wanted = {entry.path for entry in entries}
        changed = False
        for entry in entries:
            changed = self._ensure(entry, known.get(entry.path), secret=entry.path == token) or changed
        for one in before.entries:
            if one.path not in wanted:
                changed = self._remove(one) or changed
        directories = (*before.directories, *self._made)
        written = tuple(_Written(entry.path, _sha256(_body(entry))) for entry in entries)
        self._write_manifest(_Manifest(written, tuple(dict.fromkeys(directories))))
        if self._systemd:
            self._call("systemd-sysusers", "/etc/sysusers.d/rkfleet.conf")
            self._call("systemctl", "daemon-reload")
            # Only services that follow other settings now are interrupted.
            enabled = sorted({Path(entry.path).name for entry in entries if entry.target})
            self._call("systemctl", "restart" if changed else "start", *enabled)
        else:
            self._say(f"{AGENT_UNIT} starts when this system boots with systemd")

    def uninstall(self, *, purge: bool) -> None:
        """Stop the service, put its clocks back and remove what was written; with `purge` also what the agent kept.

        That is identity, ledger and artifacts. Clocks that cannot be put back are said, and keep nothing from being removed.

        Raises:
            FailedPrecondition: A file cannot be removed.
        """
        before = self._manifest()
        units = [one.path for one in before.entries if one.path.endswith(".service") and ".wants/" not in one.path]
        if self._systemd and units:
            self._call("systemctl", "stop", *(Path(unit).name for unit in units))
        self._undo_clocks()
        for one in before.entries:
            self._remove(one)
        if not before.entries:
            self._say("nothing is installed here")
        elif not self._dry_run:
            self._at(MANIFEST).unlink(missing_ok=True)
        for directory in sorted(before.directories, key=len, reverse=True):
            self._remove_if_empty(directory)
        if self._systemd and units:
            self._call("systemctl", "daemon-reload")
        if purge:
            self._purge()
        elif self._at(DATA_DIR).exists():
            self._say(f"{DATA_DIR} stays: identity, ledger and artifacts; --purge removes it")

    def _undo_clocks(self) -> None:
        """Undo what the helper, or an agent that is root, has set: nothing of this installation can do it later."""
        for record in (self._at(f"{directory}/{RECORD_NAME}") for directory in (*state_directories(), STANDALONE_DIR)):
            if not record.exists():
                continue
            where = ("--record", str(record), "--filesystem-root", str(self._root))
            done = self._run(sys.executable, "-m", "agent.clocks", "--once", "undo", *where)
            if done is not None:
                for line in done.stdout.splitlines():
                    self._say(f"  {line}")
            if done is not None and done.returncode != 0:
                why = done.stderr.strip().rpartition("\n")[2]
                self._say(f"not every clock is as it was before{f' ({why})' if why else ''}; a reboot puts them back")

    def _ensure(self, entry: Entry, known_sha256: str | None, *, secret: bool) -> bool:
        """Write the entry if it is not as it should be; return whether it was not."""
        path = self._at(entry.path)
        found = _read(path)
        if found == _body(entry):
            self._say(f"kept {path}")
            return False
        if found is not None and _sha256(found) != known_sha256:
            self._say(f"replaces {path}, which was not written by an installation; the old one is {path}.before-rkfleet")
            if not self._dry_run:
                with _disk_errors(path):
                    os.replace(path, f"{path}.before-rkfleet")
        self._say(f"writes {path}{'' if secret or not entry.target else f' -> {entry.target}'}")
        if not self._dry_run:
            with _disk_errors(path):
                self._make_directories(path.parent)
                scratch = path.with_name(f".{path.name}.new")
                scratch.unlink(missing_ok=True)
                if entry.target:
                    scratch.symlink_to(entry.target)
                else:
                    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, entry.mode)
                    with os.fdopen(descriptor, "wb") as file:
                        os.fchmod(descriptor, entry.mode)
                        file.write(entry.content)
                scratch.replace(path)
        return True

    def _remove(self, one: _Written) -> bool:
        """Remove what was written, if it is still that."""
        path = self._at(one.path)
        found = _read(path)
        if found is None:
            return False
        if _sha256(found) != one.sha256:
            self._say(f"leaves {path}, which was changed since it was written; remove it yourself")
            return False
        self._say(f"removes {path}")
        if not self._dry_run:
            with _disk_errors(path):
                path.unlink()
        return True

    def _purge(self) -> None:
        for path in map(self._at, state_directories()):
            if path.exists():
                self._say(f"removes {path} and everything in it")
                if not self._dry_run:
                    with _disk_errors(path):
                        shutil.rmtree(path)
        self._say(f"user {USER} stays, so that its number is given to nobody else; remove it with: userdel {USER}")

    def _make_directories(self, path: Path) -> None:
        missing = []
        while not path.exists():
            missing.append(path)
            path = path.parent
        for directory in reversed(missing):
            directory.mkdir()
            directory.chmod(0o755)  # whatever the umask of a root shell is
            self._made.append(f"/{directory.relative_to(self._root)}")

    def _remove_if_empty(self, directory: str) -> None:
        if not self._dry_run:
            with contextlib.suppress(OSError):  # somebody else uses it
                self._at(directory).rmdir()

    def _manifest(self) -> _Manifest:
        path = self._at(MANIFEST)
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Manifest)
        except FileNotFoundError:
            return _Manifest()
        except (OSError, msgspec.MsgspecError) as error:
            raise FailedPrecondition(f"{path} cannot be read: {error}; move it away to install anew") from error

    def _write_manifest(self, manifest: _Manifest) -> None:
        if self._dry_run:
            return
        path = self._at(MANIFEST)
        with _disk_errors(path):
            self._make_directories(path.parent)
            directories = tuple(dict.fromkeys((*manifest.directories, *self._made)))
            scratch = path.with_suffix(".new")
            scratch.write_bytes(msgspec.json.format(msgspec.json.encode(_Manifest(manifest.entries, directories))) + b"\n")
            scratch.replace(path)

    def _at(self, path: str) -> Path:
        return self._root / path.removeprefix("/")

    def _call(self, *command: str) -> None:
        done = self._run(*command)
        if done is not None and done.returncode != 0:
            said = done.stderr.strip().rpartition("\n")[2]
            raise FailedPrecondition(f"{' '.join(command)} ended with status {done.returncode}: {said}; see: journalctl -u {AGENT_UNIT}")

    def _run(self, *command: str) -> subprocess.CompletedProcess[str] | None:
        """Run a program to its end; None in a dry run, which runs nothing."""
        self._say(f"runs {' '.join(command)}")
        if self._dry_run:
            return None
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{' '.join(command)}: {error}") from error


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Raise FailedPrecondition, with the path, for what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise FailedPrecondition(f"{path}: {error.strerror or error}") from error


def _body(entry: Entry) -> bytes:
    return f"-> {entry.target}".encode() if entry.target else entry.content


def _read(path: Path) -> bytes | None:
    """Return the content of a file, or for a link where it leads; None if there is neither."""
    try:
        return f"-> {path.readlink()}".encode() if path.is_symlink() else path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror or error}") from error


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
