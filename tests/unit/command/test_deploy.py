"""What is in deploy/ agrees with what `fastpull setup` writes, and is well-formed."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from fastpull.doctor.check import Level
from fastpull.doctor.config import Expected, config_checks
from fastpull.setup.unit import TMPFILES, Paths, config_text, unit_text

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
PATHS = Paths(program="/opt/fastpull/bin/fastpull-snapshotter")
EXPECTED = Expected(snapshotter="fastpull", socket=Path(PATHS.socket), root=Path(PATHS.root))
CHART = DEPLOY / "helm" / "fastpull"
HELM = shutil.which("helm")
KUBE = ("--kube-version", "1.30.0")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fastpull.service", unit_text(PATHS)),
        ("fastpull.tmpfiles.conf", TMPFILES),
        ("config.toml", config_text(PATHS)),
    ],
)
def test_the_files_are_those_that_setup_writes(name: str, text: str) -> None:
    assert (DEPLOY / "systemd" / name).read_text() == text


@pytest.mark.parametrize(("name", "release"), [("fastpull.toml", (2, 1)), ("fastpull-1.x.toml", (1, 6))])
def test_the_drop_ins_are_what_the_doctor_wants(name: str, release: tuple[int, int]) -> None:
    document = tomllib.loads((DEPLOY / "containerd" / name).read_text())
    checks = config_checks(document, release, EXPECTED)
    assert not [check for check in checks if check.level is Level.FAIL]


def test_the_installer_is_valid_shell() -> None:
    subprocess.run(["sh", "-n", str(DEPLOY / "image" / "node-install")], check=True)


def test_the_chart_names_what_exists() -> None:
    template = (CHART / "templates" / "daemonset.yaml").read_text()
    assert "/usr/local/bin/node-install" in template
    assert "COPY deploy/image/node-install /usr/local/bin/node-install" in (DEPLOY / "image/Dockerfile").read_text()


if HELM is not None:

    @pytest.mark.parametrize(
        "values", [[], ["mode=uninstall"], ["cri=all"], ["setupFlags={--docker}", "mode=uninstall"]]
    )
    def test_the_chart_renders(values: list[str]) -> None:
        sets = [word for value in values for word in ("--set", value)]
        assert HELM is not None
        subprocess.run([HELM, "lint", "--strict", *KUBE, str(CHART), *sets], check=True, capture_output=True)
        made = subprocess.run(
            [HELM, "template", "r", *KUBE, str(CHART), *sets], check=True, capture_output=True, text=True
        )
        assert ("kind: RuntimeClass" in made.stdout) == (values == [])
