"""Files of API keys, and what stands for their owners."""

from pathlib import Path

import pytest

from rkfleet.api_keys import ADDRESSES_MAX, FAILURES_MAX, Attempts, key_line, new_key, parse_api_keys, read_api_keys, tenant_of
from rkfleet.errors import Invalid
from tests.support.clocks import ManualClock

KEY = "0123456789abcdef"


def test_a_file_has_hashes_with_names_or_keys() -> None:
    other = new_key()
    keys = parse_api_keys(f"# ours\n\n{key_line('alice', other)}{KEY}\n", "keys")
    assert keys.name_of(f"Bearer {other}".encode()) == "alice"
    assert keys.name_of(f"bearer  {KEY} ".encode()).startswith("key-")
    for wrong in (b"", b"Bearer", b"Bearer x", KEY.encode(), f"Basic {KEY}".encode(), keys.keys[0].sha256.encode()):
        assert keys.name_of(wrong) is None


@pytest.mark.parametrize(
    "text", ["", "# none\n", "short\n", "alice bob charlie\n", "alice sha256:12\n", f"sha256:{'0' * 64}\n", f"-a sha256:{'0' * 64}\n"]
)
def test_a_file_that_would_let_in_what_it_should_not_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_api_keys(text, "--api-keys-file: keys")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    for name in ("keys", "none"):
        with pytest.raises(Invalid, match=r"--flag: .* cannot be read"):
            read_api_keys(tmp_path / name, "--flag")


def test_a_tenant_is_opaque_and_its_own_in_each_realm() -> None:
    assert tenant_of("board", "a") == tenant_of("board", "a")
    assert len({tenant_of(realm, name) for realm in ("board", "gateway") for name in ("a", "b", "")}) == 6
    assert "alice" not in tenant_of("board", "alice")


def test_wrong_keys_are_counted_in_bounded_memory() -> None:
    clock = ManualClock()
    attempts = Attempts(clock)
    for _ in range(FAILURES_MAX):
        assert attempts.wait_seconds("a") == 0
        attempts.failed("a")
    assert attempts.wait_seconds("a") == 60
    assert attempts.wait_seconds("b") == 0
    clock.advance(59.5)
    assert attempts.wait_seconds("a") == 1
    for number in range(ADDRESSES_MAX):
        attempts.failed(str(number))
    assert attempts.wait_seconds("a") == 0
