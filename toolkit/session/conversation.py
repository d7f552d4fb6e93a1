"""A conversation: messages, the model's template, and a session that runs what is new of each turn.

In: what a user says. Out: what `Session.generate` gives. The whole conversation is rendered for each turn, as templates are written for,
and the session takes up the prefix that it has already; so a turn costs its own tokens. A conversation that outgrows the window loses its
oldest exchanges, never the system's message. Called by `rkfleet toolkit chat`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Final, Protocol

import msgspec

from rkfleet.errors import FailedPrecondition
from toolkit.session.inputs import Prompt, Tokens
from toolkit.session.session import Finish, Piece, Request, Session

__all__ = ["Conversation", "Renders"]

# Of the window, for an answer, if more new tokens are asked for: the other half is what the conversation is remembered by.
ANSWER_SHARE: Final = 0.5


class Renders(Protocol):
    """A chat template (`toolkit.tokens.template.Template`)."""

    def render(self, messages: list[Mapping[str, str]], *, thinking: bool | None = None) -> str:
        """Return the prompt of messages, open for an answer."""


class Conversation:
    """Turns of a user and a model.

    Attributes:
        dropped: Exchanges that were forgotten so that the rest fits.
    """

    def __init__(self, session: Session, template: Renders | None, *, system: str = "", thinking: bool | None = None) -> None:
        """Begin.

        Args:
            session: What runs; nobody else uses it meanwhile.
            template: None continues plain text: what the user says follows what the model said.
            system: Message of the system; a template may have one of its own if there is none.
            thinking: What the template knows as `enable_thinking`; None leaves it to the template.

        Raises:
            FailedPrecondition: The session has no tokenizer.
        """
        if session.tokenizer is None:
            raise FailedPrecondition("a conversation needs a tokenizer; take a model that has one")
        self.dropped = 0
        self._session: Final = session
        self._tokenizer: Final = session.tokenizer
        self._template: Final = template
        self._thinking: Final = thinking
        self._system: Final[list[Mapping[str, str]]] = [{"role": "system", "content": system}] if system else []
        self._said: list[Mapping[str, str]] = []
        self._begun = False

    def ask(self, text: str, request: Request) -> Generator[Piece | Finish]:
        """Say something and run the answer, with everything of the request but its input; see `Session.generate`.

        An answer that is broken off stays in the conversation as far as it came.
        """
        if self._template is None:
            whole = text if self._begun or not self._system else f"{self._system[0]['content']}{text}"
            yield from self._session.generate(msgspec.structs.replace(request, input=Prompt(whole), keep_history=self._begun))
            self._begun = True
            return
        self._said.append({"role": "user", "content": text})
        answer: list[str] = []
        try:
            tokens = self._prompt(self._template, request.max_new_tokens)
            for piece in self._session.generate(msgspec.structs.replace(request, input=Tokens(tokens), keep_history=False)):
                answer.append(piece.text)
                yield piece
        finally:
            self._said.append({"role": "assistant", "content": "".join(answer)})

    def _prompt(self, template: Renders, new_tokens: int) -> list[int]:
        share = int(self._session.context * ANSWER_SHARE)
        room = self._session.context - (share if new_tokens == -1 else min(new_tokens, share))
        while True:
            tokens = self._tokenizer.encode(template.render([*self._system, *self._said], thinking=self._thinking))
            if len(tokens) <= room or len(self._said) < 3:
                return tokens
            del self._said[:2]
            self.dropped += 1
