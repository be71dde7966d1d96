"""The EROFS writer, judged by erofs-utils: another implementation of the format."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from layerformat.erofs_parse import parse_super_block
from layerformat.erofs_write import build_metadata
from tests.unit.layerformat.corpus import Corpus, make_corpus

pytestmark = [
    pytest.mark.root,  # extraction makes devices and owners
    pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="erofs-utils is not installed"),
]


def write(corpus: Corpus, directory: Path) -> tuple[Path, Path]:
    image, device = directory / "meta.erofs", directory / "tar"
    image.write_bytes(build_metadata(corpus.entries, device_bytes=corpus.device_bytes))
    device.write_bytes(corpus.device)
    return image, device


def run(*command: str | Path) -> str:
    """Output and messages together. The exit code says little: of a bad super block it is 0 (erofs-utils 1.5)."""
    # fsck.erofs recurses with a buffer per level: the corpus's 1,200 levels overflow the usual 8 MiB of stack.
    deep = ["prlimit", f"--stack={1 << 30}:"]
    done = subprocess.run(
        [*deep, *command], check=False, text=True, errors="replace", stdout=-1, stderr=-2, timeout=120
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_fsck_finds_nothing(tmp_path: Path) -> None:
    image, device = write(make_corpus(), tmp_path)
    output = run("fsck.erofs", "-d3", f"--device={device}", image)
    assert "No errors found" in output and "<E>" not in output


def test_fsck_would_find_something(tmp_path: Path) -> None:
    """That the check above can fail: one flipped bit in the super block."""
    image, device = write(make_corpus(), tmp_path)
    data = bytearray(image.read_bytes())
    data[1024 + 16] ^= 1
    image.write_bytes(data)
    output = run("fsck.erofs", f"--device={device}", image)
    assert "No errors found" not in output and "<E>" in output


def test_dump_reads_the_super_block(tmp_path: Path) -> None:
    image, device = write(make_corpus(), tmp_path)
    output = run("dump.erofs", f"--device={device}", "-s", image)
    expected = parse_super_block(image.read_bytes())
    assert re.search(rf"root nid:\s+{expected.root_nid}$", output, re.M)
    assert re.search(rf"inode count:\s+{expected.inos}$", output, re.M)
    assert re.search(r"features:\s+sb_csum mtime chunked_file device_table\s*$", output, re.M)


def test_extraction_equals_the_corpus(tmp_path: Path) -> None:
    corpus = make_corpus()
    # Not the 1,200 levels: neither fsck.erofs's paths nor what removes the result afterwards can do with them.
    corpus.entries = [entry for entry in corpus.entries if not entry.path.startswith(b"deep/")]
    image, device = write(corpus, tmp_path)
    run("fsck.erofs", f"--device={device}", f"--extract={tmp_path / 'out'}", "--preserve", image)
    for entry in corpus.entries:
        if entry.link is None and entry.path in corpus.contents:
            path = Path(os.fsdecode(os.fsencode(tmp_path / "out") + b"/" + entry.path))
            assert path.read_bytes() == corpus.contents[entry.path], entry.path
            found = path.stat()  # chown comes after chmod there, so set-id bits are lost in extraction
            assert (found.st_mode | 0o6000, found.st_uid) == (entry.mode | 0o6000, entry.uid), entry.path
