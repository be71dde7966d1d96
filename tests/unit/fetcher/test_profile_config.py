"""The configuration's table for profiles, and the body that starts a recording."""

import json
from pathlib import Path

import pytest

from fastpull.admin_profiles import parse_start
from fastpull.config import ConfigError, load
from layerformat.digest import sha256_digest
from layerformat.errors import FormatError
from tests.unit.fetcher.test_profile_record import ref

MANIFEST = sha256_digest(b"an image")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_the_table(tmp_path: Path) -> None:
    path = written(tmp_path, '[profiles]\nrecord = "off"\npush = true\nwindow_s = 5\n')
    profiles = load(path, {}, {}).fetcher.profiles
    assert (profiles.record, profiles.push, profiles.window_s, profiles.replay) == ("off", True, 5.0, True)
    assert load(written(tmp_path, ""), {}, {}).fetcher.profiles.record == "auto"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[profiles]\nrecord = "sometimes"', "profiles.record"),
        ("[profiles]\npush = 1", "profiles.push"),
        ("[profiles]\nloudly = true", "profiles.loudly"),
        ("[fetcher.profiles]\npush = true", "fetcher.profiles"),
        ("profiles = 3", "profiles"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        load(written(tmp_path, text), {}, {})


def test_an_image_can_be_described() -> None:
    body = {"name": "app", "layers": [ref(0).to_annotations(), {}], "origins": [{"host": "h", "repository": "r"}]}
    hint, window_s = parse_start(MANIFEST, json.dumps({**body, "window_s": 7}).encode())
    assert hint is not None
    assert (hint.name, hint.manifest_digest, hint.layers, window_s) == ("app", MANIFEST, (ref(0),), 7.0)
    assert [str(origin) for origin in hint.origins] == ["h/r"]
    assert parse_start(MANIFEST, b"") == (None, None)


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"layers": 5}', b'{"layers": [5]}', b'{"window_s": "long"}', b'{"origins": [{}]}']
)
def test_a_body_that_is_not_understood_is_malformed(body: bytes) -> None:
    if body == b'{"origins": [{}]}':
        body = json.dumps({"layers": [ref(0).to_annotations()], "origins": [{}]}).encode()
    with pytest.raises(FormatError):
        parse_start(MANIFEST, body)
