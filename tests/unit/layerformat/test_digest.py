import pytest

from layerformat.digest import digest_from_raw, parse_digest, raw_digest, sha256_digest
from layerformat.errors import FormatError

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_digest_of_bytes() -> None:
    assert sha256_digest(b"") == EMPTY
    assert digest_from_raw(raw_digest(parse_digest(EMPTY))) == EMPTY


@pytest.mark.parametrize(
    "text", ["", "sha256:", EMPTY[:-1], EMPTY + "0", EMPTY.upper(), EMPTY + "\n", "sha512:" + EMPTY[7:], EMPTY[7:]]
)
def test_malformed_digest(text: str) -> None:
    with pytest.raises(FormatError):
        parse_digest(text)


def test_raw_digest_has_32_bytes() -> None:
    with pytest.raises(FormatError):
        digest_from_raw(b"\0" * 31)
