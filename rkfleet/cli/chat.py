"""`rkfleet chat`: ask a model through the gateway, and see the speed that the client saw.

`Answer` and `ask` are also what the demo measures with: time to the first non-empty content, and the rate of what came after it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rkfleet.cli.options import Kubeconfig
from rkfleet.errors import Invalid, NotFound, Unavailable
from rkfleet.simulated import HEADER as SIMULATED_HEADER

if TYPE_CHECKING:
    import httpx2

    from rkfleet.clock import Clock

__all__ = ["Answer", "ask", "chat", "find_gateway"]

ANSWER_SECONDS_MAX: Final = 900.0


class Answer:
    """One streamed answer, as its client saw it.

    Attributes:
        text: Everything that was said.
        time_to_first_token_seconds: From sending the request to the first non-empty content.
        decode_tokens_per_second: (output tokens - 1) / time after the first content; None with fewer than two tokens.
        output_tokens: As the server counts them (`usage`).
        board, replica, variant: Who answered (`x-rkfleet-*`).
    """

    def __init__(self) -> None:
        self.text = ""
        self.time_to_first_token_seconds: float | None = None
        self.decode_tokens_per_second: float | None = None
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.finish_reason = ""
        self.headers: dict[str, str] = {}

    def speed(self) -> str:
        """Return the measured figures as one line."""
        first = f"{self.time_to_first_token_seconds * 1000:.0f} ms" if self.time_to_first_token_seconds is not None else "none"
        rate = f"{self.decode_tokens_per_second:.1f} tokens/s" if self.decode_tokens_per_second is not None else "too short to tell"
        return f"{'simulated: ' if self.simulated else ''}TTFT {first}, decode {rate}, {self.output_tokens} output tokens"

    @property
    def simulated(self) -> bool:
        """Whether a board answered that does not exist; the speed is then that of the benchmark table."""
        return SIMULATED_HEADER in self.headers


async def ask(
    http: httpx2.AsyncClient,
    url: str,
    body: dict[str, Any],
    clock: Clock,
    *,
    on_text: Callable[[str], None] = lambda _text: None,
    on_token: Callable[[str], None] = lambda _board: None,
) -> Answer:
    """Stream one chat completion.

    Args:
        http: Client to ask with.
        url: Base URL of the gateway.
        body: The request, without `stream`.
        clock: Monotonic time.
        on_text: Given every piece of the answer.
        on_token: Given the name of the board with every piece.

    Raises:
        NotFound: The gateway does not serve the model.
        Unavailable: No replica is ready, or the stream broke; `details["status"]` is the gateway's, 200 for a stream that broke.
        Invalid: The request was refused.
    """
    import httpx2

    answer = Answer()
    started = clock.monotonic()
    first = last = 0.0
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    try:
        async with http.stream("POST", f"{url}/v1/chat/completions", json=request) as response:
            answer.headers = {name: value for name, value in response.headers.items() if name.startswith("x-rkfleet-")}
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread())
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise Unavailable(event["error"]["message"], status=response.status_code)
                text = _take(answer, event)
                if text:
                    last = clock.monotonic()
                    first = first or last
                    on_text(text)
                    on_token(answer.headers.get("x-rkfleet-board", ""))
    except httpx2.HTTPError as error:
        raise Unavailable(f"the gateway at {url} broke off: {error!r}") from error
    if first:
        answer.time_to_first_token_seconds = first - started
    if answer.output_tokens > 1 and last > first:
        answer.decode_tokens_per_second = (answer.output_tokens - 1) / (last - first)
    return answer


def _take(answer: Answer, event: dict[str, Any]) -> str:
    if usage := event.get("usage"):
        answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    text = ""
    for choice in event.get("choices", ()):
        text += choice.get("delta", {}).get("content") or ""
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    answer.text += text
    return text


def _refusal(status: int, body: bytes) -> Exception:
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered {status}"
    match status:
        case 404:
            return NotFound(message)
        case 429 | 502 | 503:
            return Unavailable(message, status=status)
        case _:
            return Invalid(message)


def find_gateway(kubeconfig: Path | None) -> str:
    """Return the gateway of the fleet whose kubeconfig is in use, as `rkfleet up` wrote it beside it.

    Raises:
        NotFound: There is no endpoints.json; give --gateway.
    """
    from rkfleet.client import find_kubeconfig

    path = find_kubeconfig(kubeconfig).parent / "endpoints.json"
    try:
        return str(json.loads(path.read_bytes())["gateway"])
    except (OSError, ValueError, KeyError) as error:
        raise NotFound(f"{path} does not name a gateway; give --gateway http://HOST:7480") from error


def chat(
    model: Annotated[str, typer.Argument(help="Served model name.")],
    prompt: Annotated[str, typer.Argument(help="What to ask; read line by line from standard input when left out.")] = "",
    *,
    gateway: Annotated[str, typer.Option(help="Gateway URL; default that of `rkfleet up`.", show_default=False)] = "",
    key: Annotated[str, typer.Option(envvar="RKFLEET_API_KEY", help="API key of the gateway.", show_default=False)] = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Talk to a model; the speed you saw goes to standard error."""
    import asyncio

    asyncio.run(_talk(gateway.rstrip("/") or find_gateway(kubeconfig), model, prompt, key, max_tokens))


async def _talk(url: str, model: str, prompt: str, key: str, max_tokens: int) -> None:
    import httpx2

    from rkfleet.clock import SystemClock

    clock = SystemClock()
    history: list[dict[str, str]] = []
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx2.AsyncClient(timeout=ANSWER_SECONDS_MAX, headers=headers) as http:
        for line in [prompt] if prompt else sys.stdin:
            if not line.strip():
                continue
            history.append({"role": "user", "content": line.strip()})
            body = {"model": model, "messages": history, "max_tokens": max_tokens}
            answer = await ask(http, url, body, clock, on_text=lambda text: print(text, end="", flush=True))
            history.append({"role": "assistant", "content": answer.text})
            print()
            print(f"[{answer.speed()}; board {answer.headers.get('x-rkfleet-board', 'unknown')}]", file=sys.stderr)
