"""What `fastpull status` shows: every state in words, at the narrowest usual terminal, and only as much as fits."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from rich.console import Console

from fastpull.daemon_client import Daemon, Layer, unreachable
from fastpull.exit_codes import ExitCode
from fastpull.failures import Failure
from fastpull.layer_rates import LayerRates
from fastpull.local_images import LocalImage
from fastpull.status_picture import Answer, Picture, one_line, unanswered
from fastpull.status_view import image_lines, seconds_left, unlisted
from fetcher.registry import Descriptor
from layerformat.digest import Digest

NAME = "registry.example:5000/team/inference/pytorch-server:2.4.1-cuda12.4-runtime"


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def layer(number: int, **changes: object) -> Layer:
    made = Layer(
        digest=digest(number),
        state="filling",
        plane="fanotify",
        mounted=True,
        tar_bytes=200_000_000,
        blob_bytes=100_000_000,
        present_bytes=50_000_000,
        waiting=0,
        origins=("registry.example:5000/team/inference", "registry.example/team/inference"),
        fetched={"fault": 10_000_000, "fill": 15_000_000},
        last_error=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def daemon(*layers: Layer, rate: float = 15e6) -> Daemon:
    return Daemon(
        plane="fanotify",
        layers={one.digest: one for one in layers},
        fetched={"fault": 10, "fill": 20},
        faults=74,
        fault_wait_s=5.1,
        rate_bytes_per_s=rate,
    )


def local(*numbers: int, name: str = NAME) -> LocalImage:
    layers = tuple(Descriptor(media_type="m", digest=digest(number), size=100_000_000) for number in numbers)
    return LocalImage(name=name, namespace="d", digest="", layers=layers, unpacked=frozenset({"fastpull"}))


def answer(node: Daemon, *images: LocalImage, wanted: str | None = None, rates: Mapping[str, float] = {}) -> Answer:
    lines = tuple(image_lines(one, node, "fastpull", {"": "none"}, rates) for one in images)
    return Answer(daemon=node, images=lines, unlisted=tuple(unlisted(images, node)), wanted=wanted)


def shown(what: object, width: int = 80) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width, color_system=None).print(what)
    text = sink.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    return text


def picture(given: Answer, width: int = 80, rows: int | None = None) -> str:
    return shown(Picture(answer=given, rows=rows), width)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_long_name_is_never_cut(width: int) -> None:
    node = daemon(layer(1, waiting=1))
    text = picture(answer(node, local(1)), width)
    assert NAME in text.replace("\n", "") and "…" not in text


def test_what_loads_says_how_fast_how_long_and_who_waits() -> None:
    text = picture(answer(daemon(layer(1, waiting=2)), local(1), rates={digest(1): 14.9e6}))
    assert "15.0 MB/s arriving, 2 reads waiting for data; all local in about 5 s" in text
    assert "25 %  local, loading 14.9 MB/s, 2 reads waiting" in text
    assert "74 reads waited, 69 ms on average" in text
    assert "1 of 1 layers lazy" in text and "profile: none" in text


def test_a_registry_that_says_nothing_is_noticed() -> None:
    assert "nothing comes from the registry" in picture(answer(daemon(layer(1, waiting=1), rate=0), local(1)))
    assert "nothing comes" not in picture(answer(daemon(layer(1), rate=0), local(1)))


def test_an_error_is_told_while_it_holds_a_layer_up_and_no_longer() -> None:
    where = "registry.example:5000/team/app"
    failed = layer(1, waiting=1, last_error=f"{where}: {where}@{digest(1)}: timed out after 520818 bytes")
    held = picture(answer(daemon(failed, rate=0), local(1)), 160)
    assert f"last error: {where}: timed out after 520818 bytes" in held
    assert "last error" not in picture(answer(daemon(failed), local(1), rates={digest(1): 1e6}))
    [line] = answer(daemon(failed), local(1)).images[0].layers
    assert line.last_error == failed.last_error and line.problem is None


def test_a_corrupt_layer_is_named_first() -> None:
    bad = layer(2, state="corrupt", last_error=f"the layer file is {digest(3)}, the config says {digest(4)}")
    given = answer(daemon(layer(1), bad), local(1, name="r.example/good:1"), local(2, name="r.example/bad:1"))
    text = picture(given)
    assert "what was fetched is not the layer: the layer file is sha256:000000000000," in " ".join(text.split())
    assert "fastpull verify" in text
    assert text.index("bad:1") < text.index("good:1")


def test_an_image_that_is_not_lazy_says_why() -> None:
    text = picture(answer(daemon(), local(1), wanted=NAME))
    assert "not lazy: not converted, so it was downloaded whole" in text
    assert "0 of 1 layers lazy" in text and "profile" not in text
    mixed = picture(answer(daemon(layer(1)), local(1, 2)), 160)
    assert "1 of 2 layers lazy (else not converted, so it was downloaded whole)" in mixed


def test_a_layer_of_the_eager_plane_is_not_lazy() -> None:
    [line] = answer(daemon(layer(1, plane="eager")), local(1)).images[0].layers
    assert not line.lazy and "fastpull doctor says why" in line.why


def test_what_is_all_here_but_unchecked_is_not_loading() -> None:
    text = picture(answer(daemon(layer(1, present_bytes=200_000_000)), local(1)))
    assert "100 %  local, being checked" in text and "loading" not in text
    almost = picture(answer(daemon(layer(1, present_bytes=199_999_999)), local(1)))
    assert "99 %" in almost and "100 %" not in almost


def test_the_registry_is_named_once() -> None:
    """containerd notes an image's registry without its port; that is no second source."""
    [image] = answer(daemon(layer(1)), local(1)).images
    assert image.hosts == ("registry.example:5000",)


def test_layers_that_do_not_fit_are_counted_and_the_busy_ones_stay() -> None:
    whole = {"state": "complete", "present_bytes": 200_000_000}
    layers = [layer(number, **whole) for number in range(1, 40)] + [layer(40, waiting=1)]
    given = answer(daemon(*layers), local(*range(1, 41)), wanted=NAME)
    text = picture(given, rows=24)
    assert len(text.splitlines()) <= 24
    assert digest(40)[7:19] in text and "more layers; a taller window shows them" in text
    assert "more layers" not in picture(given)


def test_images_that_do_not_fit_are_counted_and_the_busy_one_stays() -> None:
    images = [local(number, name=f"r.example/app:{number}") for number in range(1, 20)]
    text = picture(answer(daemon(layer(19, waiting=1)), *images), rows=24)
    assert len(text.splitlines()) <= 24
    assert "app:19" in text and "more images; a taller window shows them" in text


def test_layers_of_no_listed_image_are_told() -> None:
    text = picture(answer(daemon(layer(1), layer(2))), 160)
    assert "2 more layers, 25 % of 400 MB local" in text and "k8s.io" in text
    assert "No image here uses fastpull" in picture(answer(daemon()))
    assert "no image" in picture(answer(daemon(), wanted="r.example/app:1")).lower()


def test_the_estimate_counts_only_what_is_being_loaded() -> None:
    assert seconds_left(daemon(layer(1), layer(2, state="idle"))) == pytest.approx(5)
    assert seconds_left(daemon(layer(1), rate=0)) is None
    assert seconds_left(daemon(layer(1, state="complete", present_bytes=200_000_000))) is None


def test_rates_are_of_the_last_seconds_and_survive_a_restart() -> None:
    rates = LayerRates()
    assert rates.add(0.0, daemon(layer(1, fetched={"fill": 0}))) == {}
    assert rates.add(1.0, daemon(layer(1, fetched={"fill": 5}))) == {digest(1): 5}
    for second in range(2, 9):
        told = rates.add(float(second), daemon(layer(1, fetched={"fill": 5})))
    assert told == {digest(1): 0}
    assert rates.add(9.0, daemon(layer(1, fetched={"fill": 1}))) == {}
    assert rates.add(10.0, daemon(layer(1, fetched={"fill": 3}), layer(2))) == {digest(1): 2}


def test_a_daemon_that_is_away_is_told_above_what_was_seen_last() -> None:
    text = shown(unanswered(Failure("the daemon does not answer", hint="systemctl start fastpull"), "12:00:00"))
    assert "since 12:00:00: the daemon does not answer" in text and "systemctl start fastpull" in text


def test_a_line_for_a_log() -> None:
    [image] = answer(daemon(layer(1, waiting=1)), local(1)).images
    assert one_line(image) == f"{NAME}: 25 % local, loading, 1 read waiting; 1 of 1 layers lazy"


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "does not answer at /s: Connection refused", 6),
        (PermissionError(13, "Permission denied"), "only root may ask", 11),
    ],
)
def test_an_unreachable_daemon_is_told_in_plain_words(error: OSError, said: str, code: int) -> None:
    key = aiohttp.client_reqrep.ConnectionKey("h", 80, False, True, None, None, None)
    failure = unreachable(Path("/s"), aiohttp.client_exceptions.UnixClientConnectorError("/s", key, error))
    assert said in failure.message and "ssl" not in failure.message
    assert failure.exit_code == ExitCode(code)
