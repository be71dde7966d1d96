"""The list of declared skips."""

import pytest

from tests.harness import skips


def test_a_skip_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="line 2"):
        skips.parse("# comment\ntests/unit/test_x.py::*\n")


def test_brackets_of_parameters_are_literal() -> None:
    declared = skips.parse("tests/a.py::test_b[debian] | no such containerd\ntests/c.py::* | all of it")
    assert skips.is_declared("tests/a.py::test_b[debian]", declared)
    assert skips.is_declared("tests/c.py::test_anything[1]", declared)
    assert not skips.is_declared("tests/a.py::test_bd", declared)
    assert not skips.is_declared("tests/a.py::test_b[current]", declared)


def test_the_committed_list_is_well_formed() -> None:
    skips.parse(skips.DECLARED.read_text())
