"""`rkfleet toolkit chat`: talk to a model on this PC, as it is, or as a dtype and adapters would make it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

if TYPE_CHECKING:
    from rkfleet.clock import Clock
    from toolkit.commands.quantized import Wanted
    from toolkit.session.conversation import Conversation
    from toolkit.session.session import Finish, Request, Session
    from toolkit.tokens.template import Template

__all__ = ["command"]

CONTEXT_DEFAULT: Final = 8192  # Keys and values of a 7B model take 4 GiB then; a longer window is asked for.
LABEL: Final = "on this PC's CPU, not a board's figure"


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file, or directory of a Hugging Face model.")],
    *,
    prompt: Annotated[
        str | None, typer.Option(help="Say this, print the answer, and end; without it, lines are read until they end.")
    ] = None,
    system: Annotated[str, typer.Option(help="Message of the system.")] = "",
    dtype: Annotated[str, typer.Option(help="Compute as this dtype of the NPU would: w8a8, w4a16_g128, ...")] = "",
    algorithm: Annotated[str, typer.Option(help="normal, grq or gdq, each with or without a rank: grq_r8.")] = "normal",
    calibration: Annotated[Path | None, typer.Option(help="Calibration file; the toolkit's own prose without it.")] = None,
    optimization_level: Annotated[int, typer.Option(help="1 smooths activations of w8a8.")] = 0,
    hybrid_rate: Annotated[float, typer.Option(help="Share of layers that take the other grouping; from 0, less than 1.")] = 0.0,
    lora: Annotated[list[str] | None, typer.Option(help="Adapter, as PATH or PATH@SCALE; may be given several times.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of the window; 0 is the model's own, at most 8192.")] = 0,
    keep: Annotated[int, typer.Option(help="Tokens that stay when the window shifts (n_keep); -1 is the first prompt.")] = -1,
    max_new_tokens: Annotated[int, typer.Option(help="Of each answer; -1 goes on until the model ends.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="Word at which an answer ends; may be given several times.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token each time.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Most probable tokens to draw of; 0 for all.")] = 40,
    top_p: Annotated[float, typer.Option(help="Share of probability to draw of.")] = 0.9,
    repeat_penalty: Annotated[float, typer.Option(help="1 for none.")] = 1.1,
    frequency_penalty: Annotated[float, typer.Option(help="For each time that a token was said lately.")] = 0.0,
    presence_penalty: Annotated[float, typer.Option(help="For tokens that were said lately.")] = 0.0,
    mirostat: Annotated[int, typer.Option(help="0, 1 or 2.")] = 0,
    mirostat_tau: Annotated[float, typer.Option(help="Surprise in bits that mirostat aims at.")] = 5.0,
    mirostat_eta: Annotated[float, typer.Option(help="How fast mirostat follows.")] = 0.1,
    seed: Annotated[int | None, typer.Option(help="Of the draws; another one each time without it.")] = None,
    prompt_cache: Annotated[
        Path | None, typer.Option(help="File that keeps the first prompt's keys and values; read if it exists, else written.")
    ] = None,
    thinking: Annotated[bool | None, typer.Option("--thinking/--no-thinking", help="For templates that know it.")] = None,
    raw: Annotated[bool, typer.Option(help="Continue plain text, without the model's template.")] = False,
    stats: Annotated[bool | None, typer.Option("--stats/--no-stats", help="Print times after answers; else on a terminal only.")] = None,
    output: Annotated[Literal["text", "json"], typer.Option(help="json: one object for each answer, when it is whole.")] = "text",
) -> None:
    """Talk to a model on this machine. Times are those of this machine's CPU and say nothing about a board."""
    import secrets
    import sys

    from rkfleet.clock import SystemClock
    from toolkit.commands.quantized import Wanted
    from toolkit.session.conversation import Conversation
    from toolkit.session.inputs import Prompt
    from toolkit.session.sampling import Sampling
    from toolkit.session.session import Request

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repeat_penalty=repeat_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        mirostat=mirostat,
        mirostat_tau=mirostat_tau,
        mirostat_eta=mirostat_eta,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    request = Request(input=Prompt(""), sampling=sampling, max_new_tokens=max_new_tokens, stops=stop or ())
    session, template = _open(
        source,
        SystemClock(),
        wanted=Wanted(algorithm=algorithm, calibration=calibration, optimization_level=optimization_level, hybrid_rate=hybrid_rate),
        dtype=dtype,
        adapters=lora or [],
        context=context,
        keep=keep,
        keeps_prompts=prompt_cache is not None,
        raw=raw,
    )
    if prompt_cache is not None and prompt_cache.exists():
        session.load_prompt(prompt_cache)
        keeping = None
    else:
        keeping = prompt_cache
    conversation = Conversation(session, template, system=system, thinking=thinking)
    show = stats if stats is not None else sys.stdout.isatty()
    for text in _lines() if prompt is None else (prompt,):
        before = conversation.dropped
        finish = _answer(conversation, text, request, as_json=output == "json", stoppable=prompt is None)
        if conversation.dropped > before:
            print(f"the window is full: {conversation.dropped - before} of the oldest exchanges are forgotten", file=sys.stderr)
        if finish is not None and show and output == "text":
            print(_figures(finish), file=sys.stderr)
        if finish is not None and keeping is not None:
            session.save_prompt(keeping)
            keeping = None


def _open(
    source: Path,
    clock: Clock,
    *,
    wanted: Wanted,
    dtype: str,
    adapters: list[str],
    context: int,
    keep: int,
    keeps_prompts: bool,
    raw: bool,
) -> tuple[Session, Template | None]:
    from rich.console import Console

    from toolkit.adapters.open import open_adapter, parse_adapter
    from toolkit.commands.progress import bars
    from toolkit.commands.quantized import factory_for
    from toolkit.loading import open_model
    from toolkit.session.prompt_cache import identity_of
    from toolkit.session.session import Session
    from toolkit.simulate.network import Network
    from toolkit.tokens.open import open_tokenizer
    from toolkit.tokens.template import template_from_directory, template_from_metadata

    model = open_model(source)
    options = wanted.options(dtype) if dtype else None
    joined = []
    for text in adapters:
        path, scale = parse_adapter(text)
        joined.append((open_adapter(path, model), scale))
    tokenizer = open_tokenizer(model)
    template = None
    if not raw:
        template = template_from_directory(source, clock) if source.is_dir() else template_from_metadata(model.metadata, clock)
    with bars() as tell:
        factory = factory_for(model, tokenizer, options, wanted.calibration, tell)
    for adapter, scale in joined:
        factory = adapter.factory(factory, scale)
    console = Console(stderr=True)
    with console.status(f"loading {source.name}{f' as {dtype}' if dtype else ''}"):
        network = Network(model, model.family, factory)
        identity = identity_of(model, _labels(wanted, dtype), joined) if keeps_prompts else ""
    context = context or min(model.hyperparameters.context, CONTEXT_DEFAULT)
    return Session(network, tokenizer, clock, context=context, keep=min(keep, context - 1), identity=identity), template


def _labels(wanted: Wanted, dtype: str) -> list[str]:
    """Return what decides keys and values besides the weights; of a calibration file its bytes do, not its name."""
    import hashlib

    if not dtype:
        return [""]
    content = b"" if wanted.calibration is None else wanted.calibration.read_bytes()
    settings = [wanted.algorithm, str(wanted.optimization_level), str(wanted.hybrid_rate)]
    return [dtype, *settings, hashlib.sha256(content).hexdigest()]


def _lines() -> Iterator[str]:
    """Yield what the user says, until there is no more."""
    import sys

    while True:
        try:
            line = input("> " if sys.stdin.isatty() and sys.stdout.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        if line.strip():
            yield line


def _answer(conversation: Conversation, text: str, request: Request, *, as_json: bool, stoppable: bool) -> Finish | None:
    """Print an answer as it comes; None if the user stopped it."""
    import sys

    import msgspec

    from toolkit.session.session import Finish, Piece

    terminal = sys.stdout.isatty()
    said: list[str] = []
    tokens: list[int] = []
    finish: Finish | None = None
    answer = conversation.ask(text, request)
    try:
        for piece in answer:
            said.append(piece.text)
            if isinstance(piece, Piece):
                tokens.append(piece.token)
            elif isinstance(piece, Finish):
                finish = piece
            if not as_json and piece.text:
                print(_harmless(piece.text) if terminal else piece.text, end="", flush=True)
    except KeyboardInterrupt:
        if not stoppable:
            raise
        answer.close()
    if not as_json:
        print(flush=True)
    elif finish is not None:
        figures = {name: getattr(finish, name) for name in finish.__struct_fields__ if name not in ("text", "reason")}
        rates = {"prefill_tokens_per_second": finish.prefill_rate, "decode_tokens_per_second": finish.decode_rate}
        whole = {"text": "".join(said), "tokens": tokens, "reason": finish.reason, "seed": request.sampling.seed}
        print(msgspec.json.encode(whole | {"measured": LABEL, **figures, **rates}).decode(), flush=True)
    return finish


def _figures(finish: Finish) -> str:
    prefill = f"{finish.prompt_tokens - finish.reused_tokens} tokens of prompt at {finish.prefill_rate:.1f} tokens/s"
    reused = f" ({finish.reused_tokens} more were there)" if finish.reused_tokens else ""
    decode = f"{finish.new_tokens} new at {finish.decode_rate:.1f} tokens/s"
    return f"[first token after {finish.first_token_seconds:.2f} s; {prefill}{reused}; {decode}; {LABEL}]"


def _harmless(text: str) -> str:
    """Return a text without characters that a terminal would obey: models may say anything."""
    return "".join(one for one in text if one in "\n\t" or one.isprintable())
