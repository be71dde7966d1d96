"""What a Python program reads, told from its sources."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from converter.prediction.python_layout import python_layout
from converter.prediction.start import Command, predict
from tests.unit.converter.image_trees import Layer, Link, image, this_machine

BASE: Layer = {
    "usr/bin/python3.11": "the interpreter",
    "usr/bin/python3": Link("python3.11"),
    "usr/lib/python3.11/os.py": "",
    "usr/lib/python3.11/json/__init__.py": "from .decoder import decode",
    "usr/lib/python3.11/json/decoder.py": "import re",
    "usr/lib/python3.11/json/tool.py": "import json\nimport argparse",
    "usr/lib/python3.11/re.py": "# regular",
    "usr/lib/python3.11/argparse.py": "# arguments",
    "usr/lib/python3/dist-packages/yaml.py": "# yaml",
}


def read_by(program: str, layer: Layer, *words: str, environment: dict[str, str] | None = None) -> list[str]:
    """Names of the files below `/app` and the libraries that `python3 /app/main.py` reads, in order."""
    files = image(BASE, {"app/main.py": program, **layer})
    command = Command(words=words or ("/usr/bin/python3", "main.py"), environment=environment or {}, directory="/app")
    reaches = predict(files, command)
    assert len({(reach.layer, reach.offset) for reach in reaches}) == len(reaches)
    paths = {(file.layer, file.offset): file.path for file in files.walk("/") if file.size}
    found = [paths[reach.layer, reach.offset] for reach in reaches]
    skipped = ("/usr/bin/", "/app/main.py")
    return [path.removeprefix("/app/").removeprefix("/usr/lib/") for path in found if not path.startswith(skipped)]


def test_modules_come_in_the_order_of_their_execution() -> None:
    layer = {"app/one.py": "import three\nx = 1", "app/two.py": "x = 2", "app/three.py": "import two"}
    assert read_by("import one\nimport two", layer) == ["one.py", "three.py", "two.py"]


def test_the_library_and_packages_of_the_distribution_are_found() -> None:
    assert read_by("import json, yaml", {}) == [
        *("python3.11/json/__init__.py", "python3.11/json/decoder.py", "python3.11/re.py"),
        "python3/dist-packages/yaml.py",
    ]


def test_bytecode_is_read_in_place_of_the_source_it_is_of() -> None:
    layer = {"app/one.py": "import two", "app/__pycache__/one.cpython-311.pyc": "code", "app/two.py": "# two"}
    assert read_by("import one", layer) == ["__pycache__/one.cpython-311.pyc", "two.py"]


@pytest.mark.parametrize(
    ("program", "read"),
    [
        ("import p.q", ["p/__init__.py", "p/q.py"]),
        ("from p import q", ["p/__init__.py", "p/q.py"]),
        ("from p import absent", ["p/__init__.py"]),
        ("from p.r import s", ["p/__init__.py", "p/r/__init__.py", "p/r/s.py", "p/q.py"]),
        ("import n.m", ["n/m.py"]),
        ("try:\n  import p\nexcept ImportError:\n  import x", ["p/__init__.py", "x.py"]),
        ("if unknown:\n  import p\nelse:\n  import x", ["p/__init__.py", "x.py"]),
        ("class A:\n  with b:\n    import x", ["x.py"]),
        ("for i in j:\n  while k:\n    import x", ["x.py"]),
        ("def late():\n  import x", ["x.py"]),
        ("import typing as t\nif t.TYPE_CHECKING:\n  import x", []),
        ("import absent\nimport x", ["x.py"]),
        ("from . import x", []),
        ("import (", []),
        ("import cycle", ["cycle.py", "cycle2.py"]),
    ],
)
def test_imports(program: str, read: list[str]) -> None:
    layer = {
        "app/p/__init__.py": "# p",
        "app/p/q.py": "# q",
        "app/p/r/__init__.py": "# r",
        "app/p/r/s.py": "from .. import q",
        "app/n/m.py": "# in a namespace",
        "app/x.py": "# x",
        "app/cycle.py": "import cycle2",
        "app/cycle2.py": "import cycle",
    }
    assert read_by(program, layer) == read


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("True", True),
        ("0", False),
        ("not True", False),
        ("unknown", None),
        ("unknown and False", False),
        ("unknown or 1", True),
        ("unknown or 0", None),
        ("sys.platform == 'win32'", False),
        ("sys.platform.startswith('linux')", True),
        ("sys.platform in ('darwin', 'win32')", False),
        ("os.name != 'nt' and platform.system() == 'Linux'", True),
        ("sys.version_info >= (3, 12)", False),
        ("sys.version_info > [3, 9]", None),
        ("version_info[0] < 3", None),
        ("__name__ == '__main__'", False),
        ("os.getenv('GIVEN') == 'yes'", True),
        ("os.environ.get('ABSENT', '') or os.getenv('ABSENT')", False),
        ("os.getenv()", None),
        ("OWN", True),
        ("TWICE", None),
        ("LATE", None),
        ("TOLD is None", True),
        ("config.SIZE not in (8, 9)", False),
        ("FROM_CONFIG == 9", True),
        ("config.NOTHING", None),
        ("1 < 2 < 3", None),
        ("sys.platform < 3", None),
        ("sys.maxsize > 2 ** 32", None),
        ("(lambda: True)()", None),
    ],
)
def test_conditions_that_are_decided_before_the_start(condition: str, holds: bool | None) -> None:
    module = (
        "import sys, os, platform, config\nfrom sys import version_info\nfrom config import SIZE as FROM_CONFIG\n"
        "OWN = True\nTOLD: object = None\nTWICE = 1\nLATE = False\nfor TWICE in y: pass\n"
        f"if {condition}:\n  import yes\nelse:\n  import no\ndef f():\n  global LATE\n  LATE = True\n"
    )
    layer = {"app/m.py": module, "app/yes.py": "# yes", "app/no.py": "# no", "app/config.py": "SIZE = 9"}
    read = read_by("import m", layer, environment={"GIVEN": "yes"})
    expected = {True: ["yes.py"], False: ["no.py"], None: ["yes.py", "no.py"]}[holds]
    assert [path for path in read if path in ("yes.py", "no.py")] == expected


@pytest.mark.parametrize(
    ("module", "read"),
    [
        ("def f():\n  import x", []),
        ("def f():\n  import x\nf()", ["x.py"]),
        ("def f():\n  g()\ndef g():\n  import x\nf()", ["x.py"]),
        ("def f():\n  f()\n  import x\nf()", ["x.py"]),
        ("def f():\n  import x\nclass A(f()):\n  pass", ["x.py"]),
        ("def f():\n  import x\nh = lambda: f()", []),
        ("from y import f\nf()", ["y.py", "x.py"]),
        ("import y\ny.f()", ["y.py", "x.py"]),
        ("import y as z\nvalue = [z.f(1) for i in j]", ["y.py", "x.py"]),
        ("from z import f\n@f\ndef g(): pass", ["z.py", "y.py"]),
        ("from z import f\n@f()\ndef g(): pass", ["z.py", "y.py", "x.py"]),
        ("def g(a=1):\n  from y import f\ng()", ["y.py"]),
        ("if __name__ == '__main__':\n  import x", []),
    ],
)
def test_functions_that_a_module_calls_are_followed(module: str, read: list[str]) -> None:
    layer = {"app/m.py": module, "app/x.py": "# x", "app/y.py": "def f(): import x", "app/z.py": "from y import f"}
    assert read_by("import m", layer) == ["m.py", *read]


def test_an_attribute_that_is_a_module_is_loaded_on_demand() -> None:
    layer = {"app/lib/__init__.py": "# lib", "app/lib/_late.py": "def f(): import x", "app/x.py": "# x"}
    program = "import lib\n@lib._late.f\ndef g(): pass\nlib._late.f()"
    assert read_by(program, layer) == ["lib/__init__.py", "lib/_late.py", "x.py"]


def test_what_a_package_tells_type_checkers_is_where_it_has_a_name_from() -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from .{0} import {1}\nelse:\n  import json"
    layer = {
        "app/models/__init__.py": lazy.format("sub", "*") + "\nif TYPE_CHECKING:\n  from .near import Near",
        "app/models/near.py": "class Near: pass",
        "app/models/sub/__init__.py": lazy.format("one", "*") + "\nif TYPE_CHECKING:\n  from .two import *",
        "app/models/sub/one.py": "NAMES = {'Two': 2}\n__all__ = ['One']",
        "app/models/sub/two.py": "__all__ = ['Two']\nimport yaml",
    }
    read = read_by("from models import Two, Near, Nobody", layer)
    assert [path for path in read if path.startswith(("models", "python3/"))] == [
        *("models/__init__.py", "models/sub/__init__.py", "models/sub/two.py"),
        *("python3/dist-packages/yaml.py", "models/near.py"),
    ]


def test_sources_that_are_read_and_not_executed() -> None:
    layer = {
        "app/t/__init__.py": 'define_import_structure(Path(__file__).parent / "models")',
        "app/t/models/a/one.py": "import json",
        "app/t/models/two.py": "import json",
        "app/t/models/__pycache__/two.cpython-311.pyc": "code",
    }
    assert read_by("import t", layer) == ["t/__init__.py", "t/models/a/one.py", "t/models/two.py"]


def test_extensions_are_preferred_and_the_modules_they_name_are_imported() -> None:
    layer: Layer = {
        "app/fast.cpython-311-x86_64-linux-gnu.so": b"\0p.q\0q\0no.such\0",
        "app/fast.py": "# slow",
        "app/p/__init__.py": "# p",
        "app/p/q.abi3.so": b"q",
    }
    assert read_by("import fast", layer) == ["fast.cpython-311-x86_64-linux-gnu.so", "p/__init__.py", "p/q.abi3.so"]


def test_a_library_that_is_loaded_by_name_is_found_where_the_module_is_from() -> None:
    layer: Layer = {
        "app/t/__init__.py": "import t.load",
        "app/t/load.py": "LIBS = [('gpu', 'libgpu.so.*[0-9]'), 'libabsent.so']",
        "app/wheels/gpu/libgpu.so.13": b"gpu",
        "app/wheels/gpu2/libgpu.so.13": b"gpu",
        "app/wheels/gpu/libcpu.so.13": b"cpu",
        "elsewhere/libabsent.so": b"absent",
    }
    assert read_by("import t", layer) == ["t/__init__.py", "t/load.py", "wheels/gpu/libgpu.so.13"]


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["python3", "-u", "-X", "dev", "main.py", "--import", "p"], ["x.py"]),
        (["python3", "-m", "p", "x"], ["p/__init__.py", "p/__main__.py", "p/q.py"]),
        (["python3", "-m", "p.q"], ["p/__init__.py", "p/q.py"]),
        (["python3", "-c", "import x"], ["x.py"]),
        (["./tool", "serve"], ["tool", "p/__init__.py", "p/q.py"]),
        (["sh", "-c", "cd /app && A=b exec python3 main.py; true"], ["x.py"]),
        (["bash", "entry.sh", "python3", "main.py"], ["entry.sh", "x.py"]),
        (["sh", "-e", "start.sh", "-c", "9"], ["start.sh", "x.py", "tool", "p/__init__.py", "p/q.py"]),
        (["./entry.sh", "env", "A=b", "python3", "main.py"], ["entry.sh", "x.py"]),
        (["tini", "-g", "--", "python3", "main.py"], ["x.py"]),
        (["python3"], []),
        (["python3", "absent.py"], []),
        (["absent"], []),
        (["env", "env", "env"], []),
    ],
)
def test_commands(words: list[str], read: list[str]) -> None:
    layer: Layer = {
        "usr/bin/bash": "bash",
        "usr/bin/sh": Link("bash"),
        "usr/bin/env": "env",
        "usr/bin/tini": "tini",
        "app/x.py": "# x",
        "app/p/__init__.py": "# p",
        "app/p/__main__.py": "from .q import main",
        "app/p/q.py": "# q",
        "app/tool": "#!/usr/bin/env python3\nfrom p.q import main\nmain()",
        "app/entry.sh": '#!/bin/bash\necho hello\nexec "$@"\n',
        "app/start.sh": "# it's\nset -e\nif [ $1 ]; then A=1 python3 \\\n  main.py & fi\necho 'a\nb'\nexec ./tool $1\n",
        "bin": Link("usr/bin"),
    }
    assert read_by("import x", layer, *words, environment={"PATH": "/nowhere:/usr/bin"}) == read


def test_a_program_that_executes_itself_ends() -> None:
    layer: Layer = {"app/loop": "#!/app/loop\n"}
    assert read_by("", layer, "/app/loop") == ["loop"]


def test_pythonpath_and_virtual_environments_come_first() -> None:
    layer: Layer = {
        "venv/pyvenv.cfg": "home = /usr/bin",
        "venv/bin/python": Link("/usr/bin/python3"),
        "venv/lib/python3.11/site-packages/yaml.py": "# the environment's",
        "venv/lib/python3.11/site-packages/dev.pth": "# comment\nimport x\n/app/src\n",
        "app/src/editable.py": "# e",
        "given/re.py": "# given",
    }
    words = ("/venv/bin/python", "-c", "import yaml, editable, re")
    assert read_by("", layer, *words, environment={"PYTHONPATH": "/given"}) == [
        *("/venv/lib/python3.11/site-packages/yaml.py", "src/editable.py", "/given/re.py"),
    ]


def test_only_cpython_has_a_layout() -> None:
    files = image({"bin/python2": "x", "bin/node": "x", "bin/python3": "x"})
    assert [python_layout(files, path, {}) for path in ("/bin/python2", "/bin/node", "/bin/python3", "/no")] == [
        None
    ] * 4


def test_a_config_that_is_malformed_gives_an_empty_command() -> None:
    assert Command.of_config({"Cmd": "python3", "Env": [1], "WorkingDir": 7, "Entrypoint": None}) == Command(words=())
    full = {"Entrypoint": ["a"], "Cmd": ["b"], "Env": ["X=1=2"], "WorkingDir": "/w"}
    assert Command.of_config(full) == Command(words=("a", "b"), environment={"X": "1=2"}, directory="/w")


@pytest.mark.skipif(shutil.which("python3", path="/usr/bin") is None, reason="this machine has no Python of its own")
def test_what_this_machines_python_imports_is_predicted() -> None:
    """Against the truth: the modules and libraries that a run has loaded at its end."""
    imports = "import asyncio, ctypes, json, logging.config, sqlite3, xml.dom.minidom, http.server"
    modules = "[m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)]"
    program = f"{imports}, sys\nprint(*{modules}, *open('/proc/self/maps').read().split(), sep='\\n')"
    output = subprocess.run(
        ["/usr/bin/python3", "-S", "-c", program], capture_output=True, text=True, check=True
    ).stdout
    loaded = {Path(word).resolve() for word in output.splitlines() if word.startswith("/usr/")}
    wanted = {str(path) for path in loaded if path.suffix == ".py" or ".so" in path.name}
    directories = {str(path.parent) for path in loaded if ".so" in path.name} | {str(Path(os.__file__).parent)}
    library = next(path.parent for path in loaded if path.name == "os.py")
    files = this_machine(["/usr/bin", "/lib", "/lib64", str(library), *sorted(directories)])
    paths = {(file.layer, file.offset): file.path for file in files.walk("/") if file.size}
    reaches = predict(files, Command(words=("/usr/bin/python3", "-c", program)))
    read = {paths[reach.layer, reach.offset] for reach in reaches}
    found = {re.sub(r"__pycache__/(\w+)\.cpython-\d+\.pyc", r"\1.py", path) for path in read}
    missed = sorted(path for path in wanted - found if Path(path).stat().st_size)
    assert len(wanted) > 100
    assert len(missed) <= len(wanted) // 20, missed


def test_sources_of_any_bytes_do_no_harm() -> None:
    for text in (b"\0", b"\xff\xfe", b"(" * 5000, b"x = " + b"-" * 20000 + b"1", b"# coding: nonsense\nimport y"):
        assert read_by("import m, x", {"app/m.py": text, "app/x.py": "# x"}) == ["m.py", "x.py"]
