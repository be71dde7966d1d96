"""containerd's filter grammar: what matches, and what is refused."""

import contextlib
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgument
from snapshotter.filters import parse_filters

FIELDS = {
    ("kind",): "active",
    ("name",): "default/12/extract-7 sha256:aa",
    ("parent",): "",
    ("labels", "l"): "2",
    ("labels", "a.b/c"): "x,y",
    ("labels", "quote"): 'say "hi"',
    ("labels", "tab"): "a\tb",
}


def field(path: Sequence[str]) -> str | None:
    if path[0] == "labels":
        return FIELDS.get(("labels", ".".join(path[1:])))
    return FIELDS.get((path[0],))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], True),
        ([""], True),
        (["kind==active"], True),
        (["kind==view"], False),
        (["kind!=view"], True),
        (["kind==view", "kind==active"], True),
        (["kind==active,labels.l==2"], True),
        (["kind==active,labels.l==3"], False),
        (["kind==active,kind==view"], False),
        (["labels.l"], True),
        (["labels.none"], False),
        (["labels.l,labels.none"], False),
        (['parent==""'], True),
        (['parent!=""'], False),
        (['labels."a.b/c"=="x,y"'], True),
        (['"labels"."l"==2'], True),
        (["labels.a.b", 'labels."l"'], True),
        (['name=="default/12/extract-7 sha256:aa"'], True),
        (["name==default/12/extract-7"], False),
        (["name~=^default/"], True),
        (["name~=/extract-[0-9]+ sha256/"], True),
        (["name~=|^nothing|"], False),
        (['name~="7 sha"'], True),
        (["name~=/(/"], False),
        (["labels.none!=x"], True),
        (["labels.none~=^$"], True),
        (["labels.none==x"], False),
        ([r'labels.quote=="say \"hi\""'], True),
        ([r'labels.tab=="a\tb"'], True),
        ([r'labels.tab=="a\x09b"'], True),
        ([r'labels.tab=="a\011\u0062"'], True),
        ([r'labels.tab=="a\U00000009b"'], True),
        ([" kind == active"], True),
        (["kind==active, labels.l==2"], True),
        (["labels.l==sha256:00/._-+@!=~"], False),
    ],
)
def test_matches(texts: list[str], expected: bool) -> None:
    assert parse_filters(texts).matches(field) is expected


@pytest.mark.parametrize(
    "text",
    [
        "kind=active",
        "kind===active",
        "kind<>active",
        "kind==",
        "kind==active,",
        ",kind==active",
        "kind==active ,name==x",
        "kind==active ",
        "kind active",
        ".kind==x",
        "kind.==x",
        'kind=="active',
        'kind=="a"b',
        "kind==/active/",
        "name==|a|",
        r'name=="\q"',
        r'name=="\x1"',
        r'name=="\777"',
        r'name=="\U00110000"',
        "name==a\0b",
        'name=="a\nb"',
        "name==.x",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"position|illegal"):
        parse_filters(["kind==active", text])


@given(st.text(alphabet='ab._"/|\\,=!~ \n0x7u\0\ufffd', max_size=30))
def test_whatever_is_sent_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        parse_filters([text]).matches(field)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd")))
def test_a_quoted_value_is_what_was_quoted(value: str) -> None:
    # Without escaped surrogates, a JSON string is a Go string.
    [[selector]] = parse_filters([f"labels.x=={json.dumps(value, ensure_ascii=False)}"]).alternatives
    assert selector.value == value


def test_bytes_that_are_not_text_match_nothing_that_is() -> None:
    assert not parse_filters([r'labels.tab=="\xff"']).matches(field)
    assert parse_filters([r'labels.tab!="\ud800"']).matches(field)
