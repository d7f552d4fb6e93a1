"""What counts as another tenant's words in an answer: their secrets, and nothing that a model makes up."""

from __future__ import annotations

from tests.support.board_users import tenants_in

SECRETS = {"0123456789abcdef": "ada", "fedcba9876543210": "cleo"}


def test_a_secret_is_found_in_any_answer() -> None:
    text = '{"response": "secret-of-ada-0123456789abcdef word secret-of-cleo-fedcba9876543210"}'
    assert tenants_in(text, SECRETS) == {"ada", "cleo"}


def test_what_a_model_makes_up_from_a_secret_is_nobodys() -> None:
    assert tenants_in("secret-of-the-dark secret-of-dun-3 secret-of-ada-1 0123456789abcdee", SECRETS) == set()
