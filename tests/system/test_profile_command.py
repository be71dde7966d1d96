"""`fastpull profile` and `convert --profile` through real nerdctl, containerd, runc and a real registry."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from fastpull.daemon_client import ask
from fetcher.profiles.profile import Profile, decode_profile
from tests.harness.images import MIB
from tests.system.test_command_lab import CommandLine

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.parametrize("release", ["current"], indirect=True),
]
HOST = "--net=host"


def run_dir(fastpull: CommandLine) -> list[str]:
    return ["--run-dir", str(fastpull.daemon.run_dir)]


def shown(fastpull: CommandLine, image: str) -> Profile:
    return decode_profile(fastpull("profile", "show", "--json", *run_dir(fastpull), image).stdout.encode())


def noise_bytes(profile: Profile) -> int:
    """Of the upper layer, which is the one file."""
    return sum(read.length for read in profile.reads if read.layer == 1)


def test_recorded_pushed_replayed_and_converted_along(fastpull: CommandLine, tmp_path: Path) -> None:
    # Large enough for the fill to take longer than it takes to find the profile.
    image = fastpull.push_converted(extra=64 * MIB)
    read = ["sh", "-c", "head -c 300000 /noise | sha256sum"]
    done = fastpull("profile", "record", "--cold", *run_dir(fastpull), HOST, image, *read)
    assert "ranges" in done.stderr
    assert fastpull.containers() == []
    profile = shown(fastpull, image)
    assert 300_000 <= noise_bytes(profile) < MIB
    table = fastpull("profile", "show", *run_dir(fastpull), image).stdout
    assert "from this node" in table
    assert "download" in table

    # To the registry, and back on what is to this image another node.
    fastpull("profile", "push", *run_dir(fastpull), image)
    fastpull("profile", "rm", *run_dir(fastpull), image)
    assert shown(fastpull, image) == profile
    assert "from the registry" in fastpull("profile", "show", *run_dir(fastpull), image).stdout
    fastpull("run", "--cold", *run_dir(fastpull), "--benchmark-mode", "completion", HOST, image, *read)
    (row,) = json.loads(fastpull("profile", "list", "--json", *run_dir(fastpull)).stdout)
    assert (row["source"], row["recording"]) == ("registry", False)
    assert row["frames_prefetched"] > 0
    told = tmp_path / "start.json"
    where = [*fastpull.where(), "--root", str(fastpull.daemon.root), "-o", str(tmp_path / "start.html")]
    fastpull("report", *where, "--json", str(told), image)
    assert json.loads(told.read_text())["profile"]["hit_bytes"] >= 300_000

    # Its bytes in one piece, beside it: the next start takes them from there.
    assert "attached" in fastpull("profile", "pack", *run_dir(fastpull), image).stderr
    assert "\npack " in fastpull("profile", "show", *run_dir(fastpull), image).stdout
    fastpull("run", "--cold", *run_dir(fastpull), "--benchmark-mode", "completion", HOST, image, *read)
    (row,) = json.loads(fastpull("profile", "list", "--json", *run_dir(fastpull)).stdout)
    assert 0 < row["frames_packed"] == row["frames_prefetched"]

    # Cut along it, the image has other frames and the same tars, and the profile goes with it.
    tight = image.replace(":1", ":tight") if image.endswith(":1") else f"{image}-tight"
    fastpull("convert", "--profile", "auto", image, tight)
    assert shown(fastpull, tight).reads == profile.reads
    wide, narrow = (downloads(fastpull, name) for name in (image, tight))
    assert narrow < wide

    assert "removed 2" in fastpull("profile", "rm", "--registry", *run_dir(fastpull), image).stderr
    missing = fastpull("profile", "show", *run_dir(fastpull), image, status=3)
    assert "has no profile" in missing.stderr


def test_predicted_replayed_and_recorded_in_spite_of_it(fastpull: CommandLine, tmp_path: Path) -> None:
    image = fastpull.push_converted(extra=64 * MIB)
    nothing = ["sh", "-c", ":"]
    file = tmp_path / "app.profile"
    fastpull("profile", "predict", "--output", str(file), image)
    assert "has no profile" in fastpull("profile", "show", *run_dir(fastpull), image, status=3).stderr
    assert "attached" in fastpull("profile", "predict", image).stderr
    predicted = shown(fastpull, image)
    assert predicted.reads == decode_profile(file.read_bytes()).reads
    assert "(predicted)" in fastpull("profile", "show", *run_dir(fastpull), image).stdout
    fastpull("run", "--cold", *run_dir(fastpull), "--benchmark-mode", "completion", HOST, image, *nothing)
    (row,) = json.loads(fastpull("profile", "list", "--json", *run_dir(fastpull)).stdout)
    assert (row["source"], row["recording"], row["stored"]) == ("prediction", False, False)
    assert row["frames_prefetched"] > 0

    # What it named is what a start reads of the shell and its libraries.
    fastpull("profile", "record", "--cold", *run_dir(fastpull), HOST, image, *nothing)
    seen = shown(fastpull, image)
    ranges = [(read.layer, read.offset, read.end) for read in predicted.reads]
    inside = [
        read.length
        for read in seen.reads
        if any(layer == read.layer and start <= read.offset < end for layer, start, end in ranges)
    ]
    assert sum(inside) > 0.5 * seen.touched_bytes
    assert "removed 1" in fastpull("profile", "rm", "--registry", *run_dir(fastpull), image).stderr


def downloads(fastpull: CommandLine, image: str) -> float:
    """What `show` says a start downloads, as a share of the image."""
    table = fastpull("profile", "show", *run_dir(fastpull), image).stdout
    (line,) = [line for line in table.splitlines() if line.startswith("download")]
    return float(line.partition("(")[2].partition("%")[0])


def test_what_cannot_be_seen_is_said_and_a_fresh_start_is_merged(fastpull: CommandLine, tmp_path: Path) -> None:
    image = fastpull.push_converted()
    command = ["profile", "record", *run_dir(fastpull)]
    fastpull(*command, HOST, image, "sh", "-c", ":")
    first = shown(fastpull, image)
    wait_until_complete(fastpull, image)
    blind = fastpull(*command, HOST, image, "sh", "-c", "cat /noise > /dev/null", status=1)
    assert "2 of 2 layers are here whole and mounted" in blind.stderr
    assert "no read was seen" in blind.stderr
    assert "--cold" in blind.stderr
    assert shown(fastpull, image) == first
    fastpull(*command, "--cold", HOST, image, "sh", "-c", "cat /noise > /dev/null")
    merged = shown(fastpull, image)
    assert merged.recordings == 2
    assert noise_bytes(merged) >= 2 * MIB > noise_bytes(first)
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(fastpull("profile", "show", "--json", *run_dir(fastpull), image).stdout)
    fastpull("profile", "merge", "-o", str(tmp_path / "all.json"), *map(str, files))
    assert decode_profile((tmp_path / "all.json").read_bytes()).recordings == 4


def wait_until_complete(fastpull: CommandLine, image: str) -> None:
    deadline = time.monotonic() + 30
    while any(state != "complete" for state in layer_states(fastpull)):
        assert time.monotonic() < deadline, fastpull.status(image)
        time.sleep(0.1)


def layer_states(fastpull: CommandLine) -> list[str]:
    daemon = asyncio.run(ask(fastpull.daemon.run_dir / "admin.sock"))
    return [layer.state for layer in daemon.layers.values()]


def test_the_end_can_be_a_time_and_a_failed_start_leaves_no_profile(fastpull: CommandLine) -> None:
    image = fastpull.push_converted()
    command = ["profile", "record", *run_dir(fastpull), HOST]
    refused = fastpull(*command, "--no-such-flag", image, status=8)
    assert "nerdctl run failed" in refused.stderr
    assert json.loads(fastpull("profile", "list", "--json", *run_dir(fastpull)).stdout) == []
    fastpull(*command, "--until", "4", image, "sleep", "60")
    assert shown(fastpull, image).reads
    assert fastpull.containers() == []


def test_mistakes_are_one_line(fastpull: CommandLine, tmp_path: Path) -> None:
    plain = fastpull.push()
    refused = fastpull("profile", "record", *run_dir(fastpull), HOST, plain, status=10)
    assert "no layer" in refused.stderr
    fastpull("profile", "record", *run_dir(fastpull), "--until", "soon", plain, status=2)
    fastpull("profile", "record", *run_dir(fastpull), "--until", "ready", plain, status=2)
    (tmp_path / "bad.json").write_text("{}")
    bad = fastpull("profile", "merge", str(tmp_path / "bad.json"), status=5)
    assert "is no profile" in bad.stderr
    assert "answer" in fastpull("profile", "list", "--run-dir", str(tmp_path), status=6).stderr
