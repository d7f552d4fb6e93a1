"""Any order of requests of several users to one worker: nobody ever sees a word of another, and everybody's whole conversation is seen.

The simulated library says what its KV cache holds (`reply echo`), so an answer is the proof. Each message has words of its own.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from agent.workers.rkllm.library import SUPPORTS
from tests.support import npu_worker
from tests.support.serving import Stage, on_stage

TENANTS = st.sampled_from(["ada", "bob", ""])
CHATML = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
NUMBERS = itertools.count()  # of words, which are never the same in two messages
TURNS_MAX = 4  # an answer repeats the whole cache, so conversations double


class Tenants(RuleBasedStateMachine):
    """Users who talk to one worker, in turns, in anger and with each of its features."""

    stage: Stage
    running: npu_worker.Running
    script: Path

    @initialize()
    def begin(self) -> None:
        self.said: dict[str, list[dict[str, str]]] = {}
        self.last: tuple[str, dict[str, Any]] | None = None
        self.words: dict[str, set[str]] = {"ada": set(), "bob": set(), "": set()}

    def word(self, tenant: str) -> str:
        made = f"w{next(NUMBERS)}x{tenant}"
        self.words[tenant].add(made)
        return made

    def look(self, tenant: str, reply: npu_worker.Reply, expected: list[str]) -> None:
        seen = reply.text.split()
        for other, words in self.words.items():
            assert other == tenant or not words & set(seen), f"{tenant or 'nobody'} saw words of {other or 'nobody'}"
        positions = [seen.index(word) for word in expected]
        assert positions == sorted(positions), "the conversation is not whole, or not in order"

    @rule(tenant=TENANTS, fresh=st.booleans(), adapter=st.sampled_from(["", "law"]), think=st.booleans(), key=st.sampled_from(["", "k"]))
    def talk(self, tenant: str, fresh: bool, adapter: str, think: bool, key: str) -> None:
        """Go on with the own conversation, or begin one."""
        messages = [] if fresh else list(self.said.get(tenant, []))
        word = self.word(tenant)
        messages.append({"role": "user", "content": f" {word} "})
        fields: dict[str, Any] = {"tenant": tenant, "adapter": adapter, "think": think, "prompt_cache_key": key}
        reply = self.stage.run(self.running.chat(*messages, **fields))
        self.last = (tenant, fields)
        if reply.finish_reason == "stop":
            expected = [one["content"].strip() for one in messages if one["role"] == "user"]
            self.look(tenant, reply, expected)
        messages.append({"role": "assistant", "content": reply.text})
        self.said[tenant] = messages if len(messages) < 2 * TURNS_MAX else []

    @rule()
    def go_on(self) -> None:
        """Go on as the last one did, which is what the cache is kept for."""
        if self.last is not None:
            tenant, fields = self.last
            self.talk(tenant, False, fields["adapter"], fields["think"], fields["prompt_cache_key"])

    @rule(tenant=TENANTS)
    def imitate(self, tenant: str) -> None:
        """Go on with another's conversation word for word: even then nothing is taken from the cache, which would show by its speed."""
        if self.last is not None and self.last[0] != tenant and (messages := self.said[self.last[0]]):
            fields = {**self.last[1], "tenant": tenant}
            reply = self.stage.run(self.running.chat(*messages, {"role": "user", "content": "more"}, **fields))
            assert reply.cached_tokens == 0
            self.last = None

    @rule(tenant=TENANTS, stop=st.booleans())
    def be_cut(self, tenant: str, stop: bool) -> None:
        """End early, by a limit or a stop word."""
        self.look(
            tenant,
            self.stage.run(
                self.running.chat(f" {self.word(tenant)} ", tenant=tenant, **({"stop": "temperature"} if stop else {"max_tokens": 3}))
            ),
            [],
        )

    @rule(tenant=TENANTS)
    def leave(self, tenant: str) -> None:
        """Close the connection at the first event."""

        async def leaving() -> None:
            async with self.running.stream(f" {self.word(tenant)} ", tenant=tenant) as reply:
                async for _ in reply.events():
                    break

        self.stage.run(leaving())

    @rule(tenant=TENANTS, tokens=st.booleans())
    def complete(self, tenant: str, tokens: bool) -> None:
        """Ask with a bare prompt, of text or token ids."""
        prompt: Any = [next(NUMBERS), next(NUMBERS)] if tokens else f" {self.word(tenant)} "
        self.look(
            tenant,
            self.stage.run(self.running.complete(prompt, tenant=tenant)),
            [f"<{one}>" for one in prompt] if tokens else [prompt.strip()],
        )

    @rule(tenant=TENANTS)
    def embed(self, tenant: str) -> None:
        """Ask for numbers, which pass through the same cache."""
        self.stage.run(self.running.post("/v1/embeddings", {"input": f" {self.word(tenant)} ", "tenant": tenant}))

    @rule(tenant=TENANTS)
    def fail(self, tenant: str) -> None:
        """Meet an error of the library in the middle of an answer."""
        self.script.write_text("error_at 2\n")
        try:
            with contextlib.suppress(npu_worker.Refused):
                reply = self.stage.run(self.running.chat(f" {self.word(tenant)} ", tenant=tenant))
                assert reply.error is not None
                self.look(tenant, reply, [])
        finally:
            self.script.write_text("")


@pytest.fixture(scope="module", params=["G1", "G2", "G3", "G4 with template"])
def loaded(request: pytest.FixtureRequest) -> Iterator[tuple[Stage, npu_worker.Running, Path]]:
    generation = request.param[:2]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        script = path / "script"
        script.write_text("")
        lora = npu_worker.model(path).rename(path / "law_lora.rkllm")
        npu = npu_worker.npu(
            generation,
            path,
            template=CHATML if request.param in {"G1", "G4 with template"} else None,
            adapters=(npu_worker.Adapter(name="law", path=str(lora)),),
            cache_dir=str(path / "caches"),
            cache_bytes=1 << 20,
        )
        spec = npu_worker.spec_of(npu_worker.model(path, reply="echo", ttft_ms=0, tokens_per_s=20000), npu, max_output_tokens=1000)
        with on_stage(lambda: npu_worker.running(spec, script)) as (stage, running):
            running.supports = SUPPORTS[generation]
            yield stage, running, script


def test_no_order_of_requests_mixes_two_users(loaded: tuple[Stage, npu_worker.Running, Path]) -> None:
    """What the library had in its cache is the asker's own conversation, whole, and nothing else."""
    Tenants.stage, Tenants.running, Tenants.script = loaded
    stage, running, _ = loaded
    first = stage.run(running.chat(" one ", tenant="ada"))
    second = stage.run(running.chat(" one ", {"role": "assistant", "content": first.text}, " two ", tenant="ada"))
    assert (second.cached_tokens > 0) == ("keep_history" in running.supports), "nobody goes on with the cache: nothing would be proved"
    run_state_machine_as_test(
        Tenants, settings=settings(max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))
    )
