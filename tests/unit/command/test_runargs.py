"""Where the image is on the command line, with the flags of a real nerdctl."""

from pathlib import Path

import pytest

from fastpull.nerdctl import Nerdctl, merge, parse_help, with_globals
from fastpull.runargs import RunLine, split
from tests.unit.command.nerdctl_help import GLOBAL, RUN

ARITY = merge(parse_help(RUN), parse_help(GLOBAL))
OWN = {"--mode": True, "--cold": False, "--runs": True}


def take_apart(text: str) -> RunLine:
    return split(text.split(), OWN, ARITY)


def test_help_tells_which_flags_take_a_value() -> None:
    assert ARITY.long["entrypoint"] and ARITY.long["publish"] and ARITY.long["namespace"]
    assert not ARITY.long["rm"] and not ARITY.long["privileged"] and not ARITY.long["systemd"]
    assert ARITY.short["p"] and ARITY.short["a"] and not ARITY.short["d"]


@pytest.mark.parametrize(
    ("line", "nerdctl", "image", "arguments"),
    [
        ("app echo hi", "", "app", "echo hi"),
        ("--rm -it app sh", "--rm -it", "app", "sh"),
        ("-p 80:80 app", "-p 80:80", "app", ""),
        ("-p80:80 app --publish x", "-p80:80", "app", "--publish x"),
        ("-dp 80:80 app", "-dp 80:80", "app", ""),
        ("-itv /a:/b app", "-itv /a:/b", "app", ""),
        ("-e=A=b app", "-e=A=b", "app", ""),
        ("--entrypoint /bin/sh app -c ls", "--entrypoint /bin/sh", "app", "-c ls"),
        ("--entrypoint=/bin/sh app -c ls", "--entrypoint=/bin/sh", "app", "-c ls"),
        ("--privileged --ipc host --shm-size 1g app", "--privileged --ipc host --shm-size 1g", "app", ""),
        ("--systemd app always", "--systemd", "app", "always"),
        ("--gpus all app --mode x --cold", "--gpus all", "app", "--mode x --cold"),
        ("-h box app", "-h box", "app", ""),
        ("--new-flag=1 app", "--new-flag=1", "app", ""),
        ("--new-switch app", "--new-switch", "app", ""),
        ("--rm -- app --rm", "--rm", "app", "--rm"),
        ("-n other app", "-n other", "app", ""),
    ],
)
def test_the_first_free_token_is_the_image(line: str, nerdctl: str, image: str, arguments: str) -> None:
    taken = take_apart(line)
    assert taken == RunLine(own=(), nerdctl=tuple(nerdctl.split()), image=image, arguments=tuple(arguments.split()))


@pytest.mark.parametrize(
    "image",
    ["localhost:5000/img", "img@sha256:" + "a" * 64, "host:5000/a/b:c@sha256:" + "b" * 64, "img"],
)
def test_the_reference_is_not_touched(image: str) -> None:
    assert take_apart(f"--rm {image} x").image == image


def test_own_flags_are_taken_out_wherever_they_stand() -> None:
    taken = take_apart("--mode normal --rm --runs=3 -p 1:1 --cold app --mode z")
    assert taken.own == ("--mode", "normal", "--runs=3", "--cold")
    assert taken.nerdctl == ("--rm", "-p", "1:1")
    assert taken.arguments == ("--mode", "z")


@pytest.mark.parametrize("line", ["", "--rm", "--name", "-p 1:1", "--"])
def test_a_line_without_an_image_is_noticed(line: str) -> None:
    assert take_apart(line).image is None


def test_global_flags_before_the_image_hold_for_every_later_call() -> None:
    bare = Nerdctl(binary=Path("/bin/nerdctl"), options=("--debug",))
    flags = [
        "-a",
        "stdout",
        "--data-root",
        "/x",
        "-p",
        "1:1",
        "-n",
        "ns",
        "--address=/run/c.sock",
        "--name",
        "namespace",
    ]
    later = with_globals(bare, flags, ARITY)
    assert later.options == ("--debug", "--data-root", "/x", "-n", "ns", "--address=/run/c.sock")
    assert (later.namespace, later.address) == ("ns", "/run/c.sock")


def test_a_named_snapshotter_is_not_overridden() -> None:
    bare = Nerdctl(binary=Path("nerdctl"))
    assert bare.argv("run", "x", snapshotter="fastpull") == ["nerdctl", "--snapshotter", "fastpull", "run", "x"]
    named = Nerdctl(binary=Path("nerdctl"), options=("--snapshotter=stargz",))
    assert named.argv("run", "x", snapshotter="fastpull") == ["nerdctl", "--snapshotter=stargz", "run", "x"]
