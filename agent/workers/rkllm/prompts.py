"""From what clients ask to what the library runs: messages, images, tokens and embeddings become `Work`.

In: an `Ask` and what is loaded. Out: `Work`. Called by `http.py`; it has no I/O. There are two ways to make a prompt of messages:

- The artifact brings a template: it renders all messages, and the runtime's own template is switched off at load. The cache is compared by
  the rendered text.
- It brings none: from G2 on the runtime wraps one message by the template in the model. Earlier messages are in its cache, or they are
  told in one prompt between marks that no message contains. The cache is compared message by message.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, Protocol

import msgspec

from agent.workers.rkllm.asks import Ask, floats_of
from agent.workers.rkllm.conversation import Identity, Wanted
from agent.workers.rkllm.tools import Parser
from agent.workers.rkllm.values import Input, Mode, Multimodal, Prompt, Tokens
from agent.workers.rkllm.vision import ImageEmbedding
from agent.workers.rkllm.work import Functions, Work
from agent.workers.rknn.images import IMAGES_MAX, parse_data_url
from rkfleet.errors import BadRequest, NotFound

__all__ = ["IMAGE", "Marks", "Prompts", "Renderer"]

IMAGE: Final = "<image>"  # Where an image goes; the runtime puts its own marks there. Source: the multimodal demos of rknn-llm.
RESPONSE_TAG: Final = "tool_response"  # As the vendor's demo names results of functions.
NO_TEMPLATE: Final = (
    "this model has no chat template, and runtimes before 1.2 bring none: add the model's chat_template.jinja as a file of role template "
    "(`rkfleet model push --help`), or ask /v1/completions"
)


class Marks(msgspec.Struct, frozen=True, rename="camel"):
    """What stands around an image in a prompt and for one of its tokens, in the words of `vision` in the artifact's config.json."""

    image_start: str = "<|vision_start|>"
    image_end: str = "<|vision_end|>"
    image_content: str = "<|image_pad|>"


class Renderer(Protocol):
    """A chat template."""

    @property
    def digest(self) -> str:
        """Return what tells it from others."""
        ...

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], *, thinking: bool, variables: Mapping[str, Any]) -> str:
        """Return the prompt."""
        ...


class Prompts:
    """Makes work for one loaded model."""

    def __init__(
        self,
        *,
        supports: AbstractSet[str],
        adapters: AbstractSet[str],
        template: Renderer | None,
        marks: Marks,
        output_tokens_max: int,
        has_encoder: bool,
    ) -> None:
        """Take what is loaded, and what the library can do with it."""
        self._supports: Final = supports
        self._adapters: Final = adapters
        self._template: Final = template
        self._marks: Final = marks
        self._output_tokens_max: Final = output_tokens_max
        self._has_encoder: Final = has_encoder

    @property
    def _wraps(self) -> bool:
        """Whether the runtime puts its own template around every text."""
        return self._template is None and "built_in_chat_template" in self._supports

    def chat(self, ask: Ask) -> Work:
        """Return the work of a chat.

        Raises:
            FleetError: It cannot be asked of this model.
        """
        if not ask.messages:
            raise BadRequest("request body has no messages", param="messages")
        images: list[bytes | ImageEmbedding] = []
        plain = (lambda text: text) if not _has_images(ask) else _unmarked
        messages = [self._plain(message, images, plain) for message in ask.messages]
        if self._template is not None:
            return self._rendered(self._template, ask, messages, tuple(images))
        if not self._wraps:
            raise BadRequest(NO_TEMPLATE)
        return self._wrapped(ask, messages, tuple(images))

    def completion(self, ask: Ask, mode: Mode = "generate") -> Work:
        """Return the work of a bare prompt: text, token ids or embeddings.

        Raises:
            FleetError: It cannot be asked of this model.
        """
        if mode not in {"generate", *self._supports}:
            raise BadRequest(f"this runtime cannot give {mode}; releases from 1.2 can")
        if ask.prompt_embeds is not None:
            embedding = floats_of(ask.prompt_embeds.data, ask.prompt_embeds.tokens, "prompt_embeds")
            wanted = Wanted(identity=self._identity(ask, kind="embedding"), text=hashlib.sha256(bytes(embedding.floats)).digest())
            return self._work(ask, mode, wanted, lambda _reused, _images: embedding, lambda raw, _ids: raw, tokens=embedding.tokens)
        if isinstance(ask.prompt, str) and ask.prompt:
            return self._text(ask, mode, ask.prompt)
        if isinstance(ask.prompt, list) and ask.prompt and all(type(one) is int and 0 <= one < 1 << 31 for one in ask.prompt):
            return self._tokens(ask, mode, array("i", ask.prompt))
        raise BadRequest("prompt must be a text or a list of token ids, and not be empty", param="prompt")

    def embedding(self, given: str | list[int], adapter: str, tenant: str) -> Work:
        """Return the work of one embedding.

        Raises:
            FleetError: It cannot be asked of this model.
        """
        return self.completion(Ask(prompt=given, adapter=adapter, tenant=tenant), "hidden")

    def ignored(self, ask: Ask) -> tuple[str, ...]:
        """Return the fields that have no effect with this library and this template."""
        names = ask.ignored(self._supports)
        if self._template is not None:
            return names
        # The runtime's own template knows one variable at most: whether to think.
        wrapped = ("raw",) if ask.raw and isinstance(ask.prompt, str) and self._wraps else ()
        return (*names, *ask.template_fields(but_thinking="enable_thinking" in self._supports), *wrapped)

    def _rendered(self, template: Renderer, ask: Ask, messages: list[dict[str, Any]], images: tuple[bytes | ImageEmbedding, ...]) -> Work:
        text = template.render(messages, ask.functions, thinking=ask.thinking, variables=ask.template_variables())
        if not text:
            raise BadRequest("the chat template makes an empty prompt of these messages", param="messages")
        return self._text(ask, "generate", text, images)

    def _text(self, ask: Ask, mode: Mode, text: str, images: tuple[bytes | ImageEmbedding, ...] = ()) -> Work:
        raw = text.encode(errors="replace")
        # What the runtime wraps as a message of its own is no continuation of the message before.
        wanted = Wanted(identity=self._identity(ask, images=images), text=raw, cuts=frozenset() if self._wraps else None)

        def compose(reused: int, embeddings: Sequence[ImageEmbedding]) -> Input:
            rest = raw[reused:].decode()
            return Prompt(rest) if reused or not embeddings else self._with_images(rest, embeddings, thinking=True)

        return self._work(
            ask, mode, wanted, compose, lambda answer, _ids: answer, images=images, thinking_open=text.rstrip().endswith("<think>")
        )

    def _tokens(self, ask: Ask, mode: Mode, ids: array[int]) -> Work:
        wanted = Wanted(identity=self._identity(ask, kind="tokens"), text=ids.tobytes())

        def compose(reused: int, _images: Sequence[ImageEmbedding]) -> Input:
            return Tokens(ids[reused // ids.itemsize :])

        return self._work(ask, mode, wanted, compose, lambda _raw, answer: array("i", answer).tobytes(), tokens=len(ids))

    def _wrapped(self, ask: Ask, messages: list[dict[str, Any]], images: tuple[bytes | ImageEmbedding, ...]) -> Work:
        """Return the work for the runtime's own template."""
        if ask.functions and "function_tools" not in self._supports:
            raise BadRequest("tools need a chat template (a file of role template in the artifact) or a runtime from 1.2.1", param="tools")
        last = messages[-1]
        if last["role"] not in {"user", "tool"}:
            raise BadRequest(f"the last message is of {last['role']}; it must be of user or tool", param="messages")
        lines = [_line(one["role"], one["content"], _calls_of(one)) for one in messages]
        text = b"".join(lines)
        appendable = last["role"] == "user" or "role" in self._supports
        functions = Functions(_system_of(messages), json.dumps(ask.functions, ensure_ascii=False)) if ask.functions else None
        thinking = ask.thinking or "enable_thinking" not in self._supports
        wanted = Wanted(
            identity=self._identity(ask, kind="turns", images=images, thinking=thinking, tools=functions),
            text=text,
            cuts=frozenset({len(text) - len(lines[-1])} if appendable else ()),
        )
        whole = _told(messages, with_system=functions is None)
        names = _names_of(ask)

        def compose(reused: int, embeddings: Sequence[ImageEmbedding]) -> Input:
            if reused:
                return Prompt(last["content"], role=last["role"], enable_thinking=thinking)
            return self._with_images(whole, embeddings, thinking=thinking) if embeddings else Prompt(whole, enable_thinking=thinking)

        def answered(raw: bytes, _ids: Sequence[int]) -> bytes:
            """Return the answer as the client will send it back: without thoughts, calls apart."""
            return _line_of_answer(raw.decode(errors="replace"), names)

        return self._work(ask, "generate", wanted, compose, answered, images=images, functions=functions)

    def _with_images(self, text: str, images: Sequence[ImageEmbedding], *, thinking: bool) -> Multimodal:
        """Return text and images as one input.

        Raises:
            BadRequest: The images are not of one size, or there are more than the library takes.
        """
        first = images[0]
        if any(
            (one.tokens, len(one.floats), one.width, one.height) != (first.tokens, len(first.floats), first.width, first.height)
            for one in images
        ):
            raise BadRequest("the images have different sizes as embeddings; the runtime takes images of one size in a request")
        return Multimodal(
            prompt=text,
            image_embeds=b"".join(one.floats for one in images),
            tokens_per_image=first.tokens,
            images=len(images),
            width=first.width,
            height=first.height,
            start=self._marks.image_start,
            end=self._marks.image_end,
            content=self._marks.image_content,
            enable_thinking=thinking,
        )

    def _work(self, ask: Ask, mode: Mode, wanted: Wanted, compose: Any, answered: Any, **more: Any) -> Work:
        return Work(
            mode=mode,
            wanted=wanted,
            compose=compose,
            answered=answered,
            adapter=ask.adapter or "",
            sampling=ask.sampling() if "sampling" in self._supports and mode == "generate" else None,
            tokens_max=min(ask.tokens_max or self._output_tokens_max, self._output_tokens_max),
            cache_key=ask.prompt_cache_key or "" if mode == "generate" else "",
            callable=_names_of(ask),
            **more,
        )

    def _identity(
        self,
        ask: Ask,
        *,
        kind: Any = "text",
        images: tuple[bytes | ImageEmbedding, ...] = (),
        thinking: bool | None = None,
        tools: Functions | None = None,
    ) -> Identity:
        """Return what the request shares a cache with.

        Raises:
            NotFound: The adapter is not loaded.
        """
        if ask.adapter and ask.adapter not in self._adapters:
            raise NotFound(
                f"adapter {ask.adapter!r} is not loaded; there are {', '.join(sorted(self._adapters)) or 'none'}", param="adapter"
            )
        return Identity(
            tenant=ask.tenant or "",
            kind=kind,
            adapter=ask.adapter or "",
            template=self._template.digest if self._template is not None else "",
            thinking=ask.thinking if thinking is None else thinking,
            tools=hashlib.sha256(msgspec.json.encode(tools)).hexdigest() if tools is not None else "",
            images=tuple(hashlib.sha256(one if isinstance(one, bytes) else one.floats).hexdigest() for one in images),
        )

    def _plain(self, message: Mapping[str, Any], images: list[bytes | ImageEmbedding], plain: Callable[[str], str]) -> dict[str, Any]:
        """Return a message whose content is one text, each piece by way of `plain`; its images go to `images`.

        Raises:
            BadRequest: A part of it is nothing that can be read.
        """
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise BadRequest("a message has no role", param="messages")
        if content is None or isinstance(content, str):
            return {**message, "content": plain(content or "")}
        if not isinstance(content, list):
            raise BadRequest("content of a message must be a text or a list of parts", param="messages")
        return {**message, "content": "".join(self._part(part, images, plain) for part in content)}

    def _part(self, part: Any, images: list[bytes | ImageEmbedding], plain: Callable[[str], str]) -> str:
        match part:
            case {"type": "text", "text": str(text)}:
                return plain(text)
            case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
                if not self._has_encoder:
                    raise BadRequest(
                        "this model reads no images: its artifact has no encoder; add the vision model's .rknn file with role encoder, or "
                        "send image_embeds",
                        param="messages",
                    )
                images.append(parse_data_url(url).data)
                if len(images) > IMAGES_MAX:
                    raise BadRequest(f"{len(images)} images are more than the {IMAGES_MAX} of one request", param="messages")
            case {"type": "image_embeds", "data": str(data), "tokens": int(tokens)}:
                embedding = floats_of(data, tokens, "image_embeds")
                images.append(ImageEmbedding(floats=bytes(embedding.floats), tokens=tokens))
            case {"type": "video_url" | "video" | "input_video"}:
                raise BadRequest(
                    "video is not served: no runtime that rkfleet speaks to is given any yet; send single images", param="messages"
                )
            case {"type": kind}:
                raise BadRequest(f"a part of type {kind!r} is not served; text, image_url and image_embeds are", param="messages")
            case _:
                raise BadRequest("a part of a message has no type", param="messages")
        if len(images) > 1 and "images" not in self._supports:
            raise BadRequest("this runtime takes one image in a request; releases from 1.2 take several", param="messages")
        return IMAGE


def _has_images(ask: Ask) -> bool:
    parts = (part for message in ask.messages if isinstance(message.get("content"), list) for part in message["content"])
    return any(isinstance(part, dict) and part.get("type") in {"image_url", "image_embeds"} for part in parts)


def _unmarked(text: str) -> str:
    """Return a text that marks no place of an image: what others write as a tag (SVG does) gets a space, which changes nothing there."""
    return text.replace(IMAGE, f"{IMAGE[:-1]} >")


def _names_of(ask: Ask) -> frozenset[str] | None:
    if not ask.functions:
        return None
    functions = (one.get("function") for one in ask.functions)
    return frozenset(str(one.get("name")) for one in functions if isinstance(one, dict))


def _system_of(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(one["content"] for one in messages if one["role"] in {"system", "developer"})


def _calls_of(message: Mapping[str, Any]) -> list[list[str]]:
    calls = message.get("tool_calls")
    functions = [one.get("function") for one in calls if isinstance(one, dict)] if isinstance(calls, list) else []
    return [[str(one.get("name", "")), str(one.get("arguments", ""))] for one in functions if isinstance(one, dict)]


def _line(role: str, content: str, calls: list[list[str]]) -> bytes:
    """Return a message in one line of JSON, which no other message's text can imitate."""
    return msgspec.json.encode((role, content, calls)) + b"\n"


def _line_of_answer(text: str, names: frozenset[str] | None) -> bytes:
    parser = Parser(tools=names, thinking=False, new_id=str)
    content, calls = "", []
    for delta in (*parser.feed(text), *parser.end()):
        content += delta.get("content", "")
        for part in delta.get("tool_calls", ()):
            function = part["function"]
            if "name" in function:
                calls.append([function["name"], function["arguments"]])
            else:
                calls[-1][1] += function["arguments"]
    return _line("assistant", content, calls)


def _told(messages: Sequence[Mapping[str, Any]], *, with_system: bool) -> str:
    """Return all messages as one prompt: the last one, after the system's words and what was said before."""
    system = _system_of(messages) if with_system else ""
    said = [one for one in messages if one["role"] not in {"system", "developer"}]
    if len(said) == 1 and said[0]["role"] == "user":
        return "\n\n".join(part for part in (system, said[0]["content"]) if part)
    last = said.pop()["content"] if said[-1]["role"] == "user" else ""
    lines = [_line(one["role"], one["content"], _calls_of(one)).decode() for one in said]
    mark = hashlib.sha256("".join(lines).encode(errors="replace")).hexdigest()[:8]
    before = f"What was said before stands between two lines {mark}, a message in each line.\n{mark}\n{''.join(lines)}{mark}"
    return "\n\n".join(part for part in (system, before, last or "Go on with the conversation.") if part)
