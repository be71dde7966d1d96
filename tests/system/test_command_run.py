"""`fastpull run` through real nerdctl, containerd and runc."""

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastpull.lab.registry import free_port
from tests.system.test_command_lab import CommandLine, end

pytestmark = [pytest.mark.system, pytest.mark.root]
only_current = pytest.mark.parametrize("release", ["current"], indirect=True)
HOST = "--net=host"


def server(port: int, delay_s: float) -> list[str]:
    """A shell in the container that serves HTTP after a while."""
    script = (
        f"sleep {delay_s}; mkdir -p /tmp/www; echo ok > /tmp/www/index.html; httpd -f -p 127.0.0.1:{port} -h /tmp/www"
    )
    return ["sh", "-c", script]


def test_the_same_tag_runs_lazily_and_ordinarily(fastpull: CommandLine) -> None:
    image = fastpull.push_converted()
    lazily = fastpull("run", "--require-lazy", "--rm", HOST, image, "sha256sum", "/noise")
    [shown] = fastpull.status(image)["images"]
    assert shown["lazy_layers"] == len(shown["layers"]) == 2
    ordinarily = fastpull("run", "--mode", "normal", "--rm", HOST, image, "sha256sum", "/noise")
    assert lazily.stdout == ordinarily.stdout != ""
    assert fastpull.containers() == []


@only_current
def test_arguments_after_the_image_reach_the_container_untouched(fastpull: CommandLine) -> None:
    image = fastpull.push()
    words = ["--rm", "--mode", "x", "-p", "--", "--cold", "a  b", ""]
    done = fastpull("run", "--rm", HOST, image, "sh", "-c", 'for a; do echo "<$a>"; done', "sh", *words)
    assert done.stdout.splitlines()[-len(words) :] == [f"<{word}>" for word in words]
    assert "--mode comes after the image" in done.stderr


@only_current
def test_nerdctl_flags_before_the_image_reach_nerdctl(fastpull: CommandLine, tmp_path: Path) -> None:
    image = fastpull.push()
    (tmp_path / "f").write_text("mounted")
    flags = ["--rm", HOST, "--privileged", "--pid", "host", "--shm-size", "7m", "--name", "given"]
    flags += ["-e", "A=1", "--env=B=2", "-v", f"{tmp_path}:/m:ro", "--entrypoint", "/bin/sh", "-w", "/tmp"]
    done = fastpull("run", *flags, image, "-c", "echo $A $B $(cat /m/f) $(pwd)")
    assert done.stdout.splitlines()[-1] == "1 2 mounted /tmp"
    refused = fastpull("run", "--no-such-flag", image, status=None)
    assert refused.returncode != 0 and "no-such-flag" in refused.stderr


@only_current
def test_the_exit_code_is_the_containers(fastpull: CommandLine) -> None:
    image = fastpull.push()
    fastpull("run", "--rm", HOST, image, "sh", "-c", "exit 42", status=42)
    fastpull("run", HOST, "--benchmark-mode", "completion", image, "sh", "-c", "exit 43", status=43)


@only_current
@pytest.mark.parametrize("form", ["{host}/plain", "{host}/plain:latest", "{host}/plain@{digest}", "{host}/a/b:1"])
def test_references_with_port_without_tag_and_with_digest(fastpull: CommandLine, form: str) -> None:
    layout_reference = fastpull.push("plain:latest" if "plain" in form else "a/b:1")
    named = json.loads(fastpull("inspect", "--json", layout_reference).stdout)
    image = form.format(host=fastpull.registry.host, digest=named[0]["digest"])
    done = fastpull("run", "--rm", HOST, image, "sh", "-c", "echo it runs")
    assert done.stdout.splitlines()[-1] == "it runs"


@only_current
def test_require_lazy_refuses_before_anything_runs(fastpull: CommandLine, tmp_path: Path) -> None:
    image = fastpull.push("ordinary:1")
    command = ["run", "--require-lazy", "--rm", HOST, "-v", f"{tmp_path}:/m", image, "touch", "/m/ran"]
    refused = fastpull(*command, status=10)
    assert "2 of 2 layers are ordinary" in refused.stderr
    assert not (tmp_path / "ran").exists()
    assert fastpull.containers() == []


@only_current
def test_detached_containers_stay(fastpull: CommandLine) -> None:
    image = fastpull.push()
    done = fastpull("run", "-d", "--name", "stays", HOST, image, "sleep", "60")
    assert len(done.stdout.strip().splitlines()[-1]) == 64
    assert fastpull.containers() == ["stays"]


@only_current
def test_completion_is_measured_by_this_containers_events(fastpull: CommandLine, tmp_path: Path) -> None:
    image = fastpull.push()
    results, chart = tmp_path / "o.json", tmp_path / "o.png"
    with other_containers(fastpull, image):
        flags = ["--benchmark-mode", "completion", "--runs", "2", "--output-json", str(results), "--chart", str(chart)]
        done = fastpull("run", "--mode", "normal", HOST, *flags, image, "sh", "-c", "sleep 3; echo done")
    document = json.loads(results.read_text())
    assert done.stdout.count("done") == 2
    assert "NORMAL BENCHMARK SUMMARY" in done.stderr
    assert len({run["container_id"] for run in document["runs"]}) == 2
    for run in document["runs"]:
        metrics = run["metrics"]
        # The others end every half second; taken for ours they would have ended the measurement.
        # A program may begin a little before containerd says that it has.
        assert 2.5 <= metrics["completion_time"] - metrics["container_start_time"] < 4
        assert metrics["container_created_time"] < metrics["container_start_time"]
    spread = document["statistics"]["completion_time"]
    assert spread["min"] <= document["metrics"]["completion_time"] <= spread["max"]
    assert chart.read_bytes().startswith(b"\x89PNG")


@contextmanager
def other_containers(fastpull: CommandLine, image: str) -> Iterator[None]:
    """Containers of the same image and namespace that start and end all the while."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            fastpull.containerd.nerdctl("run", "--rm", HOST, image, "sleep", "0.3", snapshotter="overlayfs")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@only_current
def test_readiness_is_noticed_at_once_and_the_container_removed(fastpull: CommandLine, tmp_path: Path) -> None:
    image, port, results = fastpull.push_converted(), free_port(), tmp_path / "o.json"
    flags = ["--benchmark-mode", "readiness", "--readiness-endpoint", f"http://127.0.0.1:{port}/"]
    done = fastpull("run", HOST, *flags, "--output-json", str(results), image, *server(port, 2.0))
    metrics = json.loads(results.read_text())["metrics"]
    assert "FASTPULL BENCHMARK SUMMARY" in done.stderr
    assert 1.5 <= metrics["readiness_time"] - metrics["container_start_time"] < 2.6
    assert metrics["completion_time"] is None
    assert fastpull.containers() == []


@only_current
def test_every_trouble_of_a_starting_server_means_not_yet(fastpull: CommandLine) -> None:
    """A port that accepts and hangs up, then answers nonsense, then 503: none of it ends the measurement."""
    image, port = fastpull.push(), free_port()
    rude = f"echo | nc -l -p {port} -s 127.0.0.1 >/dev/null"
    busy = f"printf 'HTTP/1.1 503 No\\r\\n\\r\\n' | nc -l -p {port} -s 127.0.0.1 >/dev/null"
    script = f"alias nc='busybox nc'; {rude}; {rude}; {busy}; {' '.join(server(port, 0.1)[2:])}"
    flags = ["--benchmark-mode", "readiness", "--readiness-endpoint", f"http://127.0.0.1:{port}/", "--timeout", "30"]
    fastpull("run", "--mode", "normal", HOST, *flags, image, "sh", "-c", script)
    assert fastpull.containers() == []


@only_current
@pytest.mark.parametrize(
    ("script", "said"),
    [("echo last words; exit 3", "ended with status 3 before"), ("sleep 60", "did not become ready in 2 s")],
)
def test_a_server_that_never_gets_ready_is_removed(fastpull: CommandLine, script: str, said: str) -> None:
    image, port = fastpull.push(), free_port()
    flags = ["--benchmark-mode", "readiness", "--readiness-endpoint", f"http://127.0.0.1:{port}/", "--timeout", "2"]
    done = fastpull("run", "--mode", "normal", HOST, *flags, image, "sh", "-c", script, status=9)
    assert said in done.stderr
    assert ("last words" in done.stdout) == ("last words" in script)
    assert fastpull.containers() == []


@only_current
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_leaves_no_container(fastpull: CommandLine, number: signal.Signals) -> None:
    image = fastpull.push()
    begun = fastpull.begin("run", "--mode", "normal", HOST, "--benchmark-mode", "completion", image, "sleep", "60")
    wait_for_container(fastpull, begun)
    status, err = end(begun, number)
    assert status == 130, err
    assert "Traceback" not in err
    assert fastpull.containers() == []


def wait_for_container(fastpull: CommandLine, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 30
    while not fastpull.containerd.ctr("tasks", "ls", "-q").split():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no container was started"
        time.sleep(0.1)


@only_current
def test_an_image_that_does_not_exist(fastpull: CommandLine) -> None:
    image = fastpull.registry.reference("nothing:here")
    done = fastpull("run", HOST, "--benchmark-mode", "completion", image, status=8)
    assert "not found" in done.stderr
    assert fastpull.containers() == []


@only_current
def test_a_cold_start_pulls_again(fastpull: CommandLine, tmp_path: Path) -> None:
    image, results = fastpull.push(), tmp_path / "o.json"
    flags = ["--mode", "normal", HOST, "--benchmark-mode", "completion", "--output-json", str(results)]
    fastpull("run", *flags, image, "sh", "-c", "true")
    warm = json.loads(results.read_text())
    done = fastpull("run", *flags, "--cold", image, "sh", "-c", "true")
    cold = json.loads(results.read_text())
    assert cold["cold"] and not warm["cold"]
    assert "layer-sha256" in done.stderr  # nerdctl's own progress of a pull
    fastpull("run", "-d", "--mode", "normal", HOST, image, "sleep", "60")
    used = fastpull("run", *flags, "--cold", image, "sh", "-c", "true", status=11)
    assert "cannot be removed" in used.stderr


@only_current
def test_a_cold_lazy_start_fetches_again(fastpull: CommandLine) -> None:
    """Cold means the daemon's cache too: what was complete is fetched once more, from nothing."""
    image = fastpull.push_converted()
    where = ["--run-dir", str(fastpull.daemon.run_dir), "--cold", HOST, "--benchmark-mode", "completion"]
    fetched = []
    for _ in range(2):
        fastpull("run", *where, image, "sha256sum", "/noise")
        fetched.append(sum(fastpull.status()["fetched_bytes"].values()))
    assert fetched[0] > 2 << 20 and fetched[1] >= 2 * fetched[0] * 0.9


@only_current
def test_who_may_not_reach_containerd_is_told_so(fastpull: CommandLine, tmp_path: Path) -> None:
    """Nothing seen of a container is not its completion."""
    image, results = fastpull.push(), tmp_path / "o.json"
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # The tests' own Python may lie where only root may look; containerd's socket is not opened by that.
    nobody += [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
    for mode in (["--benchmark-mode", "completion", "--output-json", str(results)], []):
        refused = fastpull("run", "--mode", "normal", HOST, *mode, image, "true", status=None, prefix=nobody)
        assert refused.returncode != 0
        assert "SUMMARY" not in refused.stdout + refused.stderr
        assert re.search(r"permission denied|must be root|rootless|sudo", refused.stderr, re.IGNORECASE), refused.stderr
        assert not results.exists()
    assert fastpull.containers() == []
