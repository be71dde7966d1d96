"""The commands that look: status, inspect, verify, auth check, doctor; against the real thing."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from fastpull.lab.process import run
from tests.system.test_command_lab import FASTPULL, CommandLine

pytestmark = [
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.parametrize("release", ["current"], indirect=True),
]
# A hint names the program that this machine has.
STARTED_BY = "systemctl start fastpull" if Path("/run/systemd/system").is_dir() else "sudo fastpull setup starts it"


def test_status_tells_lazy_from_ordinary_and_why(fastpull: CommandLine) -> None:
    converted, ordinary = fastpull.push_converted("good:1"), fastpull.push("plain:1")
    for image in (converted, ordinary):
        fastpull("run", "--rm", "--net=host", image, "sh", "-c", "true")
    images = {image["name"]: image for image in fastpull.status()["images"]}
    assert images[converted]["lazy_layers"] == 2
    assert images[ordinary]["lazy_layers"] == 0
    assert {layer["why"] for layer in images[ordinary]["layers"]} == {"not converted, so it was downloaded whole"}
    told = fastpull("status", *fastpull.where(), converted).stdout
    assert "2 of 2 layers lazy" in told
    assert fastpull.registry.host in told
    fastpull("status", *fastpull.where(), "no-such:image", status=3)


def test_status_watch_goes_on_until_it_is_interrupted(fastpull: CommandLine) -> None:
    image = fastpull.push_converted("app:1")
    fastpull("run", "--rm", "--net=host", image, "sh", "-c", "true")
    watching = fastpull.begin("status", "--watch", *fastpull.where(), image)
    time.sleep(3)
    assert watching.poll() is None
    os.killpg(watching.pid, signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert watching.returncode == 130 and "2 of 2 layers lazy" in out and "Traceback" not in err


def test_status_watch_outlives_a_restart_of_the_daemon(fastpull: CommandLine) -> None:
    image = fastpull.push_converted("app:1")
    fastpull("run", "--rm", "--net=host", image, "sh", "-c", "true")
    watching = fastpull.begin("status", "--watch", *fastpull.where(), image)
    time.sleep(3)
    fastpull.daemon.stop()
    time.sleep(3)
    fastpull.daemon.start()
    time.sleep(3)
    assert watching.poll() is None
    os.killpg(watching.pid, signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert watching.returncode == 130 and "Traceback" not in err
    before, away, after = out.partition("the daemon does not answer")
    assert "2 of 2 layers lazy" in before and away and "ssl" not in after


def test_status_watch_waits_for_an_image_and_tells_it_as_json_lines(fastpull: CommandLine) -> None:
    image = fastpull.push_converted("app:1")
    watching = fastpull.begin("status", "--watch", "--json", *fastpull.where(), image)
    time.sleep(3)
    fastpull("run", "--rm", "--net=host", image, "sh", "-c", "true")
    time.sleep(3)
    os.killpg(watching.pid, signal.SIGINT)
    out, _ = watching.communicate(timeout=20)
    told = [json.loads(line) for line in out.splitlines() if line.strip()]
    assert told[0]["images"] == []
    assert told[-1]["images"][0]["name"] == image and told[-1]["images"][0]["lazy_layers"] == 2


def test_status_without_a_daemon_is_one_line_and_a_hint(fastpull: CommandLine) -> None:
    fastpull.daemon.stop()
    done = fastpull("status", *fastpull.where(), status=6)
    assert done.stderr.startswith("fastpull: the daemon does not answer")
    assert f"hint: {STARTED_BY}" in done.stderr
    fastpull.daemon.start()


def test_inspect_tells_whether_an_image_is_converted(fastpull: CommandLine) -> None:
    image = fastpull.push("app:1")
    assert json.loads(fastpull("inspect", "--json", image).stdout)[0]["converted"] == "no"
    fastpull("convert", image, image)
    [view] = json.loads(fastpull("inspect", "--json", image).stdout)
    assert view["converted"] == "yes"
    assert all(layer["frames"] > 0 and layer["tar_size"] % 4096 == 0 for layer in view["layers"])
    assert "it starts lazily" in fastpull("inspect", image).stdout
    missing = fastpull("inspect", fastpull.registry.reference("app:2"), status=3)
    assert missing.stderr.count("\n") == 2


def test_verify_reads_every_byte(fastpull: CommandLine) -> None:
    image = fastpull.push_converted("app:1")
    assert "none bad" in fastpull("verify", image).stdout
    victim = max(fastpull.registry.store.rglob("data"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    verdicts = json.loads(fastpull("verify", "--json", image, status=5).stdout)
    assert [bool(verdict["problem"]) for verdict in verdicts].count(True) == 1


def test_auth_check_shows_who_answered_and_never_a_secret(fastpull: CommandLine, tmp_path: Path) -> None:
    image = fastpull.push("app:1")
    asked = fastpull("auth", "check", image)
    assert "asked anonymously" in asked.stdout and "found: sha256:" in asked.stdout
    (tmp_path / "config.json").write_text(
        json.dumps({"auths": {fastpull.registry.host: {"username": "mia", "password": "geheim"}}})
    )
    known = fastpull("auth", "check", image, more={"DOCKER_CONFIG": str(tmp_path)})
    assert "user mia" in known.stdout and "geheim" not in known.stdout + known.stderr


def test_doctor_finds_nothing_wrong_here_and_names_what_is_missing(fastpull: CommandLine, tmp_path: Path) -> None:
    where = ["--root", str(fastpull.daemon.root), "--run-dir", str(fastpull.daemon.run_dir)]
    where += ["--containerd-address", str(fastpull.containerd.address)]
    config = fastpull.containerd.config
    good = json.loads(fastpull("doctor", "--json", *where, "--containerd-config", str(config)).stdout)
    assert good["healthy"], good
    assert {"kernel", "containerd", "containerd config", "nerdctl", "fastpull daemon"} <= {
        check["area"] for check in good["checks"]
    }
    bad_config = tmp_path / "config.toml"
    shutil.copy(config, bad_config)
    text = bad_config.read_text()
    bad_config.write_text(text.replace('snapshotter = "overlayfs"', 'snapshotter = "native"'))
    bad = json.loads(fastpull("doctor", "--json", *where, "--containerd-config", str(bad_config), status=1).stdout)
    [failed] = [check for check in bad["checks"] if check["level"] == "fail"]
    assert "does not list overlayfs" in failed["found"] and failed["fix"]


def test_doctor_names_a_dead_daemon(fastpull: CommandLine) -> None:
    fastpull.daemon.stop()
    where = ["--root", str(fastpull.daemon.root), "--run-dir", str(fastpull.daemon.run_dir)]
    where += ["--containerd-address", str(fastpull.containerd.address)]
    done = fastpull("doctor", *where, "--containerd-config", str(fastpull.containerd.config), status=1)
    assert f"fix: {STARTED_BY}" in done.stdout
    fastpull.daemon.start()


def test_output_has_no_colour_when_not_wanted(fastpull: CommandLine) -> None:
    image = fastpull.push("app:1")
    script = f"script -qec '{FASTPULL} inspect {image}' /dev/null"  # util-linux script(1) gives it a terminal
    terminal = {**fastpull.env(), "TERM": "xterm-256color"}
    assert "\x1b[1m" in run(["/bin/sh", "-c", script], env=terminal)
    assert "\x1b[3" not in run(["/bin/sh", "-c", script], env={**terminal, "NO_COLOR": "1"})


def test_report_tells_of_one_start(fastpull: CommandLine, tmp_path: Path) -> None:
    image = fastpull.push_converted("app:1")
    fastpull("run", "--name", "seen", "--net=host", image, "sha256sum", "/noise")
    out, data = tmp_path / "start.html", tmp_path / "start.json"
    where = [*fastpull.where(), "--root", str(fastpull.daemon.root), "-o", str(out), "--json", str(data)]
    assert "reads" in fastpull("report", *where, image).stdout
    document = json.loads(data.read_text())
    assert {"/noise", "/bin/busybox"} <= {use["path"] for use in document["files"]}
    noise = next(use for use in document["files"] if use["path"] == "/noise")
    assert noise["bytes"] == 2 << 20 and noise["layer"] == 1
    assert document["read_bytes"] >= noise["bytes"] and sum(document["fetched"].values()) > 0
    assert "/noise" in out.read_text()
    assert document["profile"] is None and 0 <= document["stalled_s"] <= document["wait_s"] + 1e-6
    fastpull("report", *where, "seen")
    assert json.loads(data.read_text())["image"] == image
    unread = fastpull.push_converted("unread:1")
    fastpull("report", *where, unread, status=3)
