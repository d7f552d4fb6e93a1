"""The command line as a program: live views on a real terminal and in a pipe, and completion in a real bash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.api import running_api
from tests.support.cli import Cli
from tests.support.objects import BOARDS, DEPLOYMENTS, board, deployment
from tests.support.tcp_proxy import tcp_proxy

WAIT_SECONDS_MAX = 20
SCREEN_LINES, SCREEN_COLUMNS = 20, 100
MODULE = (sys.executable, "-m", "rkfleet.cli.main")


def environment(kubeconfig: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "RKFLEET_KUBECONFIG": str(kubeconfig), **more}


@contextlib.asynccontextmanager
async def interrupted(kubeconfig: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command whose output is a pipe; it is interrupted at the end of the block and must end as such."""
    process = await asyncio.create_subprocess_exec(
        *MODULE, *words, env=environment(kubeconfig), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            yield process
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().split()


def test_a_watch_in_a_pipe_appends_a_line_for_each_change(tmp_path: Path) -> None:
    """As kubectl get -w: headings once, the rows that are there, then one line for whatever changes, no colours."""

    async def story() -> None:
        async with running_api(tmp_path) as api:
            await api.call("POST", DEPLOYMENTS, deployment("one"))
            async with interrupted(api.kubeconfig, "get", "modeldeployments", "-w") as process:
                assert (await line(process))[:3] == ["NAME", "STATUS", "MODEL"]
                assert (await line(process))[:3] == ["one", "qwen2", "1"]
                await api.call("POST", DEPLOYMENTS, deployment("two"))
                assert (await line(process))[0] == "two"
                headers = {"content-type": "application/merge-patch+json"}
                await api.call("PATCH", f"{DEPLOYMENTS}/one", {"spec": {"replicas": 7}}, headers=headers)
                assert (await line(process))[:3] == ["one", "qwen2", "7"]
            assert process.stderr is not None
            assert await process.stderr.read() == b""

    asyncio.run(story())


def test_a_watch_says_when_the_api_is_away_and_when_it_is_back(tmp_path: Path) -> None:
    """What is shown must not look current when it is not."""

    async def story() -> None:
        async with running_api(tmp_path) as api:
            await api.call("POST", DEPLOYMENTS, deployment("one"))
            real = int(api.url.rpartition(":")[2])
            through = tmp_path / "through-a-proxy"
            async with contextlib.AsyncExitStack() as running:
                async with tcp_proxy(real) as proxy:
                    through.write_text(api.kubeconfig.read_text().replace(f":{real}", f":{proxy.port}"))
                    process = await running.enter_async_context(interrupted(through, "get", "modeldeployments", "-w"))
                    assert (await line(process))[0] == "NAME"
                    assert (await line(process))[0] == "one"
                assert process.stderr is not None
                assert b"shown is what was known last" in await process.stderr.readline()
                await api.call("POST", DEPLOYMENTS, deployment("two"))
                async with tcp_proxy(real, proxy.port):
                    assert await process.stderr.readline() == b"connected again\n"
                    assert (await line(process))[0] == "two"

    asyncio.run(story())


class Terminal:
    """A program on a pseudo-terminal, and everything that it wrote there."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.text = ""
        self._master = master
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # The last holder of the other side is gone.
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.text += data.decode(errors="replace")
        self._news.set()

    async def until(self, pattern: str) -> None:
        """Wait until what was written so far holds the pattern."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not re.search(pattern, self.text):
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def terminal(kubeconfig: Path, *words: str) -> AsyncIterator[Terminal]:
    """Run a command on a terminal of its own."""
    master, slave = pty.openpty()
    size = {"LINES": str(SCREEN_LINES), "COLUMNS": str(SCREEN_COLUMNS), "TERM": "xterm-256color"}
    for name in ("NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)
    process = await asyncio.create_subprocess_exec(
        *MODULE, *words, env=environment(kubeconfig, **size), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(master)


def test_a_watch_on_a_terminal_redraws_in_place_with_colours(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_api(tmp_path) as api:
            status = {
                "status": {
                    "soc": "cpu",
                    "conditions": [
                        {"type": "Ready", "status": "True", "reason": "SessionOpen", "lastTransitionTime": "2026-01-01T00:00:00Z"}
                    ],
                }
            }
            headers = {"content-type": "application/merge-patch+json"}
            await api.call("POST", BOARDS, board("b-1"))
            await api.call("PATCH", f"{BOARDS}/b-1/status", status, headers=headers)
            async with terminal(api.kubeconfig, "top", "boards", "-w") as screen:
                await screen.until(r"b-1")
                await screen.until(r"\x1b\[32mSessionOpen\x1b\[0m")
                await api.call("POST", BOARDS, board("b-2"))
                await screen.until(r"b-2")
                assert re.search(r"\x1b\[\d*A", screen.text), "the cursor goes up and draws over what was there"
                screen.process.send_signal(signal.SIGINT)
                async with asyncio.timeout(WAIT_SECONDS_MAX):
                    assert await screen.process.wait() == 130
                assert screen.text.endswith("\x1b[?25h"), "the cursor is shown again"

    asyncio.run(story())


async def completed(kubeconfig: Path, typed: str, **more: str) -> list[str]:
    """What a real bash offers after `typed` and <Tab>."""
    script = f"""
        source <("$RKFLEET" completion bash)
        typed=({typed})
        [[ "$1" == space ]] && typed+=("")
        COMP_WORDS=("${{typed[@]}}") COMP_CWORD=$(( ${{#typed[@]}} - 1 ))
        _rkfleet_completion rkfleet
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    commands = Path(sys.executable).parent
    known = environment(kubeconfig, PATH=f"{commands}:{os.environ['PATH']}", RKFLEET=str(commands / "rkfleet"), **more)
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", script, "bash", "space" if typed.endswith(" ") else "", env=known,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        out, err = await process.communicate()
    assert err == b"", err
    return out.decode().split()


def test_bash_completes_commands_kinds_and_names_of_the_cluster(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_api(tmp_path) as api:
            await api.call("POST", BOARDS, board("rk3588-1"))
            await api.call("POST", BOARDS, board("rk3576-1"))
            await api.call("POST", DEPLOYMENTS, deployment("qwen"))
            asked = {
                "rkfleet roll": ["rollout"],
                "rkfleet rollout u": ["undo"],
                "rkfleet get board": ["boards"],
                "rkfleet get boards rk358": ["rk3588-1"],
                "rkfleet board drain ": ["rk3576-1", "rk3588-1"],
                "rkfleet explain b": ["board/"],
                "rkfleet explain board/rk357": ["board/rk3576-1"],
                "rkfleet rollout history -n nowhere ": [],
                "rkfleet rollout history ": ["qwen"],
            }
            async with asyncio.TaskGroup() as group:
                tasks = {typed: group.create_task(completed(api.kubeconfig, typed)) for typed in asked}
            assert {typed: sorted(task.result()) for typed, task in tasks.items()} == asked

    asyncio.run(story())


def test_completion_is_silent_without_a_cluster(tmp_path: Path) -> None:
    """No kubeconfig, and one whose server is gone."""
    (tmp_path / "gone").write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],"
        " clusters: [{name: c, cluster: {server: 'https://127.0.0.1:9'}}], users: [{name: u, user: {token: t}}]}"
    )

    async def story() -> None:
        assert await completed(tmp_path / "nothing", "rkfleet board drain ") == []
        assert await completed(tmp_path / "gone", "rkfleet board drain ") == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o default -F"), ("zsh", "#compdef rkfleet"), ("fish", "complete --command rkfleet")]
)
def test_every_shell_has_its_script(tmp_path: Path, shell: str, mark: str) -> None:
    script = asyncio.run(Cli(tmp_path).ok("completion", shell))
    assert mark in script
    assert "_RKFLEET_COMPLETE=complete_" in script


def test_a_shell_that_is_not_known_is_refused(tmp_path: Path) -> None:
    asyncio.run(Cli(tmp_path).fails(2, "completion", "csh"))
