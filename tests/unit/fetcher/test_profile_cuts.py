"""Profiles and conversions: frames cut along what was read, for the price of little more than that."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from converter.convert import convert_image
from converter.cuts import PAGE, cuts, hot_ranges
from converter.options import ConvertOptions, ConvertResult
from converter.options import Profile as HotRanges
from fastpull.profile_convert import attach, chosen_profile, read_profile
from fastpull.profile_table import coverage
from fastpull.profile_target import all_targets, find_target, frame_tables
from fetcher.profiles import referrers
from fetcher.profiles.profile import Profile, Read, encode_profile
from fetcher.registry import NotFound, Reference, RegistryClient, RegistryConfig
from layerformat.digest import DiffID
from tests.harness.fake_registry import FakeRegistry
from tests.harness.fake_server import Fault
from tests.unit.converter.archives import member, python_tar
from tests.unit.converter.layouts import Layout
from tests.unit.fetcher.test_profile import WHEN, diff_id, profile

KIB = 1 << 10
LAYER = diff_id(0)
#: What a hot run may cost beside its bytes: hot ranges this close are one.
RUN_OVERHEAD = 48 * KIB

runs = st.lists(st.tuples(st.integers(0, 8000), st.integers(1, 100)), min_size=1, max_size=30)
sizes = st.lists(st.integers(1, 2000 * KIB), max_size=30)


def layout_of(sizes: list[int]) -> tuple[list[tuple[int, int]], int]:
    """Where the files of these sizes lie in a padded tar, and how long that is."""
    files, position = [], 0
    for size in sizes:
        start = -(-(position + 512) // PAGE) * PAGE
        files.append((start, start + size))
        position = start + size
    return files, -(-(position + 1024) // PAGE) * PAGE


@given(sizes, runs)
@example([596_913], [(131, 1), (144, 1)])
def test_hot_bytes_are_in_tight_frames(sizes: list[int], runs: list[tuple[int, int]]) -> None:
    files, total = layout_of(sizes)
    touched = [(start * PAGE, min(total, (start + pages) * PAGE)) for start, pages in runs if start * PAGE < total]
    plan = ConvertOptions(profile=HotRanges(ranges={LAYER: tuple(touched)})).plan(LAYER)
    ends = cuts(files, total, plan)
    frames = list(zip([0, *ends], ends, strict=False))
    assert frames[-1][1] == total
    assert all(start < end for start, end in frames)
    alone = hot_ranges(touched)
    hot_bytes = sum(end - start for start, end in alone)
    fetched = sum(end - start for start, end in frames if any(start < stop and begin < end for begin, stop in alone))
    assert hot_bytes <= fetched <= 1.1 * hot_bytes + RUN_OVERHEAD * len(alone)


@given(sizes)
def test_without_common_reads_nothing_changes(sizes: list[int]) -> None:
    files, total = layout_of(sizes)
    rare = profile(Read(0, 0, PAGE, 1), recordings=3)
    assert rare.ranges() == {}
    options = ConvertOptions(profile=HotRanges(ranges=rare.ranges()))
    assert cuts(files, total, options.plan(LAYER)) == cuts(files, total, ConvertOptions().plan(LAYER))


# Whole images


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as served:
        yield served


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with RegistryClient(RegistryConfig()) as client:
        yield client


def source(directory: Path) -> str:
    layout = Layout()
    files = python_tar((member(f"file{number}"), bytes([number]) * 300_000) for number in range(20))
    return layout.write(directory, layout.image([files]))


async def convert(
    client: RegistryClient, source: str, destination: str, profile: Profile | None = None, **options: Any
) -> ConvertResult:
    hot = None if profile is None else HotRanges(ranges=profile.ranges())
    return await convert_image(source, destination, ConvertOptions(profile=hot, **options), client=client)


async def test_a_profile_goes_from_image_to_image(
    client: RegistryClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    plain, tight = f"{registry.host}/team/app:1", f"{registry.host}/team/app:1-tight"
    await convert(client, source(tmp_path / "in"), plain)
    before = await find_target(client, plain)
    made = Profile(
        layers=before.diff_ids,
        reads=(Read(0, 4_000_000 // PAGE * PAGE, 2 * PAGE), Read(0, 40 * PAGE, PAGE)),
        recorded_at=WHEN,
        duration_ms=5,
    )
    await referrers.push(client, before.origin, before.digest, made)
    assert await chosen_profile(client, "auto", plain, tight) == made
    result = await convert(client, plain, tight, made)
    assert not result.missed_profile
    await attach(client, tight, made)
    after = await find_target(client, tight)
    assert after.digest != before.digest
    assert after.diff_ids == before.diff_ids
    assert await referrers.pull(client, after.origin, after.digest, after.diff_ids) == made
    (wide,) = coverage(made, await frame_tables(client, before))
    (narrow,) = coverage(made, await frame_tables(client, after))
    assert (wide.touched_bytes, narrow.touched_bytes) == (3 * PAGE, 3 * PAGE)
    assert wide.frame_bytes is not None
    assert wide.frame_bytes > 256 * KIB
    assert (narrow.frame_bytes, narrow.frames, narrow.requests) == (3 * PAGE, 2, 2)


async def test_a_layer_that_was_never_converted_tells_that_it_missed_the_profile(
    client: RegistryClient, registry: FakeRegistry, tmp_path: Path
) -> None:
    there, here = f"{registry.host}/team/app:1", f"{registry.host}/team/other:1"
    await convert(client, source(tmp_path / "in"), there)
    target = await find_target(client, there)
    made = dataclasses.replace(profile(Read(0, 40 * PAGE, PAGE)), layers=target.diff_ids)
    assert (await convert(client, f"oci:{tmp_path}/in", here, made)).missed_profile
    again = await convert(client, f"oci:{tmp_path}/in", here, made)
    assert not again.missed_profile
    (narrow,) = coverage(made, await frame_tables(client, await find_target(client, here)))
    assert narrow.frame_bytes == PAGE


async def test_attaching_is_no_reason_to_fail(
    client: RegistryClient, registry: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{registry.host}/team/app:1"
    await convert(client, source(tmp_path / "in"), name)
    target = await find_target(client, name)
    made = dataclasses.replace(profile(Read(0, 0, PAGE)), layers=target.diff_ids)
    registry.fault(Fault(method="POST", path="uploads", status=403, times=None))
    await attach(client, name, made)
    assert "was not attached" in capsys.readouterr().err
    await attach(client, f"oci:{tmp_path}/nowhere", made)


async def test_auto_without_a_profile_is_a_note(
    client: RegistryClient, registry: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await chosen_profile(client, "auto", source(tmp_path / "in"), f"{registry.host}/team/app:1") is None
    assert "without one" in capsys.readouterr().err
    with pytest.raises(NotFound):
        await all_targets(client, Reference.parse(f"{registry.host}/team/app:1"))


def test_a_file_is_read(tmp_path: Path) -> None:
    made = profile(Read(0, 0, 1))
    (tmp_path / "p.json").write_bytes(encode_profile(made))
    assert read_profile(tmp_path / "p.json") == made


def test_a_profile_can_be_restricted_to_some_layers() -> None:
    layers = (diff_id(0), diff_id(1), diff_id(2))
    made = profile(Read(2, 0, 5), Read(0, 0, 5), Read(2, 5, 5), Read(1, 3, 3), layers=layers)
    part = made.restricted_to({DiffID(diff_id(2)), diff_id(1)})
    assert part is not None
    assert part.layers == (diff_id(1), diff_id(2))
    assert part.reads == (Read(1, 0, 10), Read(0, 3, 3))
    assert made.restricted_to({diff_id(9)}) is None
