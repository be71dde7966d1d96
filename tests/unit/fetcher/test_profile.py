"""Profiles as documents: what is taken, what is refused, and what they ask a node to fetch."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.profiles.document import MAX_BYTES, MAX_ROWS, ProfileError
from fetcher.profiles.profile import Profile, Read, coalesced, decode_profile, encode_profile, wanted_frames
from layerformat.digest import DiffID
from layerformat.frames import FrameTable

KIB = 1 << 10
WHEN = datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)


def diff_id(number: int) -> DiffID:
    return DiffID(f"sha256:{hashlib.sha256(str(number).encode()).hexdigest()}")


LAYERS = (diff_id(0), diff_id(1), diff_id(2))


def profile(*reads: Read, recordings: int = 1, layers: tuple[DiffID, ...] = LAYERS) -> Profile:
    return Profile(layers=layers, reads=reads, recorded_at=WHEN, duration_ms=1234, recordings=recordings)


def document(**changes: Any) -> bytes:
    sound = json.loads(encode_profile(profile(Read(0, 0, 4096), Read(1, 8192, 100))))
    return json.dumps({**sound, **changes}).encode()


def table(*lengths: int) -> FrameTable:
    return FrameTable.from_sizes((length // 2, length, bytes(32)) for length in lengths)


def test_the_document_is_as_specified() -> None:
    """docs/profiles.md, to the byte: other implementations depend on it."""
    data = encode_profile(profile(Read(0, 4096, 8192, 2), Read(2, 0, 1, 1), recordings=2))
    layers = ",".join(f'"{each}"' for each in LAYERS)
    assert data.decode() == (
        f'{{"durationMs":1234,"format":"fastpull-profile","layers":[{layers}],'
        '"reads":[[0,4096,8192],[2,0,1,1]],"recordedAt":"2026-03-01T12:00:05Z","recordings":2,"version":1}\n'
    )


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    recordings = draw(st.integers(1, 5))
    reads = []
    for layer in range(len(LAYERS)):
        bounds = sorted(draw(st.sets(st.integers(0, 1 << 30), max_size=12)))
        for start, end in zip(bounds[::2], bounds[1::2], strict=False):
            reads.append(Read(layer, start, end - start, draw(st.integers(1, recordings))))
    return profile(*draw(st.permutations(reads)), recordings=recordings)


@given(profiles())
def test_what_is_written_is_read(made: Profile) -> None:
    data = encode_profile(made)
    assert decode_profile(data) == made
    assert encode_profile(decode_profile(data)) == data


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "other"}, "no profile"),
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"layers": []}, "layers"),
        ({"layers": ["sha256:00"]}, "layers"),
        ({"layers": [LAYERS[0], LAYERS[0]]}, "different"),
        ({"layers": "x"}, "layers"),
        ({"reads": {}}, "reads"),
        ({"reads": [[0, 0]]}, r"reads\[0\]"),
        ({"reads": [[0, 0, 4096], [0, 0.0, 4096]]}, r"reads\[1\]"),
        ({"reads": [[0, True, 4096]]}, r"reads\[0\]"),
        ({"reads": [[3, 0, 4096]]}, "bounds"),
        ({"reads": [[-1, 0, 4096]]}, "bounds"),
        ({"reads": [[0, -1, 4096]]}, "bounds"),
        ({"reads": [[0, 0, 0]]}, "bounds"),
        ({"reads": [[0, 1 << 43, 1]]}, "bounds"),
        ({"reads": [[0, 0, 4096, 2]]}, "bounds"),
        ({"reads": [[0, 0, 4096, 0]]}, "bounds"),
        ({"reads": [[0, 0, 4096], [1, 0, 9], [0, 4095, 10]]}, "overlap"),
        ({"reads": [[0, 0, 1]] * (MAX_ROWS + 1)}, "at most"),
        ({"recordings": 0}, "recordings"),
        ({"durationMs": -1}, "durationMs"),
        ({"durationMs": 1.5}, "durationMs"),
        ({"recordedAt": "yesterday"}, "recordedAt"),
        ({"recordedAt": 5}, "recordedAt"),
    ],
)
def test_what_is_malformed_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ProfileError, match=why):
        decode_profile(document(**change))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b"9" * 5000, b" " * (MAX_BYTES + 1)]
)
def test_what_is_no_profile_is_refused(data: bytes) -> None:
    with pytest.raises(ProfileError):
        decode_profile(data)


@given(st.binary(max_size=40), st.integers(0, 400))
def test_damage_never_ends_in_another_error(damage: bytes, at: int) -> None:
    data = bytearray(document())
    data[at : at + len(damage)] = damage
    try:
        decode_profile(bytes(data))
    except ProfileError:
        return


def test_unknown_members_are_left_to_later_versions() -> None:
    assert decode_profile(document(note="x")) == decode_profile(document())


def test_a_profile_fits_its_own_image_alone() -> None:
    made = profile(Read(0, 0, 1))
    made.check_fits([*LAYERS, diff_id(9)])
    with pytest.raises(ProfileError, match="another image"):
        made.check_fits(LAYERS[:2])


def test_frames_come_once_in_the_order_over_all_layers() -> None:
    made = profile(Read(1, 70 * KIB, 4 * KIB), Read(0, 0, 130 * KIB), Read(1, 0, 4 * KIB), Read(1, 66 * KIB, 1 * KIB))
    tables = {LAYERS[0]: table(*[64 * KIB] * 4), LAYERS[1]: table(*[64 * KIB] * 4)}
    assert wanted_frames(made, tables) == [
        (LAYERS[1], 1),
        (LAYERS[0], 0),
        (LAYERS[0], 1),
        (LAYERS[0], 2),
        (LAYERS[1], 0),
    ]
    assert wanted_frames(made, {LAYERS[0]: tables[LAYERS[0]]}) == [(LAYERS[0], number) for number in range(3)]


def test_a_read_past_the_tar_is_refused() -> None:
    with pytest.raises(ProfileError, match="names bytes up to"):
        wanted_frames(profile(Read(0, 64 * KIB, 1)), {LAYERS[0]: table(64 * KIB)})


def test_neighbours_in_order_are_joined() -> None:
    reads = [Read(0, 0, 10), Read(0, 10, 5), Read(1, 15, 5), Read(0, 15, 5), Read(0, 20, 5, 2)]
    assert coalesced(reads) == (Read(0, 0, 15), Read(1, 15, 5), Read(0, 15, 5), Read(0, 20, 5, 2))
