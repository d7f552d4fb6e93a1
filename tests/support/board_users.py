"""Users of one board, by chance: who asks what, in which dialect, who leaves in the middle, and what became of every request.

In: the URL of a board, its models and the keys of tenants. Out: a `Tally`. What a user says has the tenant's own word in it, and the
simulated library repeats all that it remembers (`reply echo`), so text of another tenant shows in an answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from rkfleet.clock import SystemClock
from tests.unit.test_images import data_url, picture

SECRET = re.compile(r"[0-9a-f]{16}")  # What a model writes by itself looks like a name at times, and never like one of these.
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
LEAVES_SHARE = 0.25  # Of requests, whose users leave before the end.
PAUSE_SECONDS_MAX = 0.05
FAULTS_PAUSE_SECONDS = 0.1  # After an error, as clients do.

# What the board refuses before it counts a request: nothing was asked of a model.
UNCOUNTED = frozenset(
    {
        "invalid_json", "invalid_value", "model_not_found", "images_not_supported", "tools_not_supported", "invalid_image_url",
        "not_on_demand", "missing_required_parameter", "unknown_url",
    }
)  # fmt: skip


def tenants_in(text: str, secrets: Mapping[str, str]) -> set[str]:
    """Return the tenants whose secrets, by secret, stand in a text."""
    return {secrets[found] for found in SECRET.findall(text) if found in secrets}


@dataclass
class Tally:
    """What became of requests: `outcomes` counts each once, `wrong` has a sentence for whatever must not be.

    `secrets` has the tenant of everything that was said to be kept; `own` counts answers with a secret of whoever asked, which show that
    one of somebody else would be seen.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    own: int = 0

    @property
    def sent(self) -> int:
        return self.outcomes.total()


@dataclass(frozen=True)
class Ask:
    """One request of a user."""

    tenant: str
    path: str
    body: dict[str, Any]
    leaves_after: float | None

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream", self.path.startswith("/api/")))


class User:
    """One client of a tenant: asks, reads to the end or leaves, and asks again."""

    def __init__(self, tenant: str, key: str, models: tuple[str, ...], chance: random.Random, tally: Tally) -> None:
        self.tenant = tenant
        self.key = key
        self.models = models
        self.chance = chance
        self.tally = tally

    async def run(self, url: str, until: asyncio.Event) -> None:
        """Ask until told to stop; the request in progress is ended as it ends."""
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False, verify=False, timeout=30) as client:
            while not until.is_set():
                outcome = await self.ask(client, self.next())
                self.tally.outcomes[outcome] += 1
                await SystemClock().sleep(self.chance.uniform(0, PAUSE_SECONDS_MAX if outcome == "answered" else FAULTS_PAUSE_SECONDS))

    def secret(self) -> str:
        """Return a new secret of the tenant; nobody can guess it."""
        made = f"{self.chance.getrandbits(64):016x}"
        self.tally.secrets[made] = self.tenant
        return made

    def next(self) -> Ask:
        """Make up a request."""
        chance = self.chance
        text = f"secret-of-{self.tenant}-{self.secret()} " + "word " * chance.randrange(12)
        leaves = chance.uniform(0, 0.2) if chance.random() < LEAVES_SHARE else None
        model = chance.choice(self.models)
        messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "max_tokens": chance.randrange(1, 24),
            "stream": chance.random() < 0.5,
        }
        match chance.randrange(12):
            case 0:
                body |= {"prompt_cache_key": f"talk-{chance.randrange(3)}"}
            case 1:
                body |= {"tools": TOOLS}
            case 2:
                body |= {"model": f"{model}:law"}
            case 3:
                image = {"type": "image_url", "image_url": {"url": data_url(picture(colour=chance.choice(("red", "blue"))))}}
                messages[0]["content"] = [{"type": "text", "text": text}, image]
            case 4:
                body |= {"stop": ["word", "secret"], "temperature": 0}
            case 5:
                before = {"role": "user", "content": f"secret-of-{self.tenant}-{self.secret()}"}
                messages[:0] = [{"role": "system", "content": "Be brief."}, before, {"role": "assistant", "content": "Yes."}]
            case 6:
                return Ask(self.tenant, "/v1/embeddings", {"model": model, "input": [text, "more"]}, leaves)
            case 7:
                return Ask(self.tenant, "/v1/completions", {"model": model, "prompt": text, "max_tokens": 8, "stream": True}, leaves)
            case 8:
                return Ask(self.tenant, "/api/chat", {"model": model, "messages": messages, "options": {"num_predict": 8}}, leaves)
            case 9:
                generate = {"model": model, "prompt": text, "stream": False, "options": {"num_predict": 8}}
                return Ask(self.tenant, "/api/generate", generate, leaves)
            case 10:
                body |= chance.choice(({"stop": ["x"] * 1000}, {"temperature": 99}, {"max_tokens": -1}, {"messages": "none"}, {"n": 9}))
            case _:
                pass
        return Ask(self.tenant, "/v1/chat/completions", body, leaves)

    async def ask(self, client: httpx2.AsyncClient, ask: Ask) -> str:
        """Send a request and return its one outcome."""
        try:
            async with asyncio.timeout(ask.leaves_after), client.stream("POST", ask.path, json=ask.body) as response:
                data = await response.aread()
        except TimeoutError:
            return "left"
        except httpx2.TransportError as error:
            return self._say(ask, f"the connection ended without an answer: {type(error).__name__} {error}", "lost")
        text = data.decode()
        heard = tenants_in(text, self.tally.secrets)
        self.tally.own += self.tenant in heard
        others = heard - {self.tenant}
        if others:
            self._say(ask, f"the answer has words of {others}: {text[:400]}", "leaked")
        if response.status_code != 200:
            return self._refusal(ask, response.status_code, text)
        try:
            return self._answer(ask, text)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return self._say(ask, f"the answer cannot be read: {error!r}: {text[:400]}", "garbage")

    def _refusal(self, ask: Ask, status: int, text: str) -> str:
        try:
            told = json.loads(text)
            code = told["code"] if ask.path.startswith("/api/") else told["error"]["code"]
        except (ValueError, KeyError, TypeError):
            return self._say(ask, f"status {status} without a reason: {text[:200]}", "garbage")
        if status == 500 or "internal" in str(code):
            self._say(ask, f"internal error: {text[:300]}", "internal")
        return "uncounted" if code in UNCOUNTED else f"refused {status}"

    def _answer(self, ask: Ask, text: str) -> str:
        """Read a whole answer, or a stream: it has exactly one end."""
        if ask.path == "/v1/embeddings":
            return "answered" if len(json.loads(text)["data"]) == 2 else "garbage"
        if not ask.streams:
            whole = json.loads(text)
            ended = whole["done"] if ask.path.startswith("/api/") else whole["choices"][0]["finish_reason"]
            return "answered" if ended else self._say(ask, f"no end: {text[:200]}", "garbage")
        if ask.path.startswith("/api/"):
            events = [json.loads(line) for line in text.splitlines() if line]
            ends = [one for one in events if one.get("done") or "error" in one]
            last = events[-1] if events else {}
        else:
            lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
            events = [json.loads(line) for line in lines if line != "[DONE]"]
            ends = [one for one in events if "error" in one or any(choice["finish_reason"] for choice in one.get("choices", ()))]
            last = events[-1] if events else {}
            if "error" not in last and lines[-1:] != ["[DONE]"]:
                return self._say(ask, f"a stream ends without [DONE]: {text[-300:]}", "garbage")
        if len(ends) != 1:
            return self._say(ask, f"a stream has {len(ends)} ends: {text[-400:]}", "garbage")
        return "broken off" if "error" in last else "answered"

    def _say(self, ask: Ask, sentence: str, outcome: str) -> str:
        self.tally.wrong.append(f"{self.tenant} {ask.path} {json.dumps(ask.body)[:160]}: {sentence}")
        return outcome
