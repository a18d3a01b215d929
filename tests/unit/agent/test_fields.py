# SPDX-License-Identifier: MIT
"""Fields of JSON, YAML and dotenv files, and the newline at the end of a value."""

from __future__ import annotations

import json
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from credferry.agent.config.secrets import CredentialConfig, Format
from credferry.agent.source.fields import DOCUMENT_MAX, ParsedFile, parse
from credferry.agent.source.published import Publication
from credferry.agent.source.reading import Problem
from credferry.agent.source.snapshot import Snapshot, SourceGeneration
from credferry.launcher.handoff import Secret

YAML = """
db:
  password: hunter2
  port: 0123
  ssl: yes
  none: ~
  more: {a: "b # c"}
"tls.crt": |
  one
  two
list: [x, {y: z}]
shared: &s {k: v}
alias: *s
twice: 1
twice: 2
odd: !vault x
when: 2026-11-28
"""
DOTENV = """
# a comment
PLAIN=one
QUOTED="two\\nlines"
SINGLE='$PLAIN'
export EXPORTED=x  # not this
AGAIN=1
AGAIN=2
EMPTY=
BARE
DOT.TED=y
REFERS=${PLAIN}
"""
JSON = '{"db": {"password": "hunter2", "port": 1.50, "on": true, "off": false, "none": null,'
JSON += ' "l": [1, {"a": "b"}]}, "a.b": "c", "": "e", "twice": 1, "twice": 2, "half": "\\ud800",'
JSON += ' "long": 123456789012345678901234567890}'


def taken(text: str | bytes, form: Format, field: str) -> bytes | Problem:
    """What a field of a file is."""
    document = parse(Secret(text if isinstance(text, bytes) else text.encode()), form)
    found = document.field(field) if isinstance(document, ParsedFile) else document
    return found.reveal() if isinstance(found, Secret) else found


@pytest.mark.parametrize(
    ("text", "form", "field", "expected"),
    [
        (JSON, Format.JSON, "db.password", b"hunter2"),
        (JSON, Format.JSON, "db.port", b"1.50"),
        (JSON, Format.JSON, "long", b"123456789012345678901234567890"),
        (JSON, Format.JSON, "db.on", b"true"),
        (JSON, Format.JSON, "db.off", b"false"),
        (JSON, Format.JSON, "db.none", Problem.EMPTY),
        (JSON, Format.JSON, "db.l.0", b"1"),
        (JSON, Format.JSON, "db.l.1.a", b"b"),
        (JSON, Format.JSON, "db.l.2", Problem.NO_FIELD),
        (JSON, Format.JSON, "db.l.-1", Problem.NO_FIELD),
        (JSON, Format.JSON, "db.l.\u0661", Problem.NO_FIELD),
        (JSON, Format.JSON, "db.l." + "9" * 5000, Problem.NO_FIELD),
        (JSON, Format.JSON, "db", Problem.NOT_A_TEXT),
        (JSON, Format.JSON, "db.password.x", Problem.NO_FIELD),
        (JSON, Format.JSON, r"a\.b", b"c"),
        (JSON, Format.JSON, "a.b", Problem.NO_FIELD),
        (JSON, Format.JSON, "twice", Problem.FIELD_TWICE),
        (JSON, Format.JSON, "half", Problem.NOT_A_TEXT),
        ("[1", Format.JSON, "a", Problem.MALFORMED),
        ("[NaN]", Format.JSON, "0", Problem.MALFORMED),
        ("[" * 60_000, Format.JSON, "a", Problem.MALFORMED),
        (b"\xff", Format.JSON, "a", Problem.MALFORMED),
        ("x" * (DOCUMENT_MAX + 1), Format.YAML, "a", Problem.DOCUMENT_TOO_LARGE),
        (YAML, Format.YAML, "db.password", b"hunter2"),
        (YAML, Format.YAML, "db.port", b"0123"),
        (YAML, Format.YAML, "db.ssl", b"yes"),
        (YAML, Format.YAML, "db.none", Problem.EMPTY),
        (YAML, Format.YAML, "db.more.a", b"b # c"),
        (YAML, Format.YAML, r"tls\.crt", b"one\ntwo\n"),
        (YAML, Format.YAML, "list.1.y", b"z"),
        (YAML, Format.YAML, "list", Problem.NOT_A_TEXT),
        (YAML, Format.YAML, "alias.k", b"v"),
        (YAML, Format.YAML, "twice", Problem.FIELD_TWICE),
        (YAML, Format.YAML, "odd", Problem.NOT_A_TEXT),
        (YAML, Format.YAML, "when", b"2026-11-28"),
        (YAML, Format.YAML, "no", Problem.NO_FIELD),
        ("", Format.YAML, "a", Problem.NO_FIELD),
        ("a: [", Format.YAML, "a", Problem.MALFORMED),
        ("a: 1\n---\na: 2\n", Format.YAML, "a", Problem.MALFORMED),
        ("a: \x07", Format.YAML, "a", Problem.MALFORMED),
        ("[" * 60_000, Format.YAML, "a", Problem.MALFORMED),
        ("a: &x [*x]", Format.YAML, "a", Problem.NOT_A_TEXT),
        ("? [1]\n: 2\nb: c", Format.YAML, "b", b"c"),
        (DOTENV, Format.DOTENV, "PLAIN", b"one"),
        (DOTENV, Format.DOTENV, "QUOTED", b"two\nlines"),
        (DOTENV, Format.DOTENV, "SINGLE", b"$PLAIN"),
        (DOTENV, Format.DOTENV, "EXPORTED", b"x"),
        (DOTENV, Format.DOTENV, "AGAIN", b"2"),
        (DOTENV, Format.DOTENV, "EMPTY", Problem.EMPTY),
        (DOTENV, Format.DOTENV, "BARE", Problem.EMPTY),
        (DOTENV, Format.DOTENV, "DOT.TED", b"y"),
        (DOTENV, Format.DOTENV, "REFERS", b"${PLAIN}"),
        (DOTENV, Format.DOTENV, "NO", Problem.NO_FIELD),
        ("A='open", Format.DOTENV, "A", Problem.MALFORMED),
    ],
)  # fmt: skip
def test_fields(text: str | bytes, form: Format, field: str, expected: bytes | Problem) -> None:
    """Each kind of value is taken as it is written; what is no value, or is ambiguous, is a problem."""
    assert taken(text, form, field) == expected


_KEY = st.text(st.characters(codec="utf-8", exclude_characters="\\"), min_size=1, max_size=8)
_TREE = st.recursive(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEY, inner, max_size=3),
    max_leaves=8,
)


def _leaves(tree: object, way: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    match tree:
        case dict():
            return [each for key, value in tree.items() for each in _leaves(value, (*way, key))]
        case list():
            return [each for key, value in enumerate(tree) for each in _leaves(value, (*way, str(key)))]
        case _:
            return [(".".join(part.replace(".", r"\.") for part in way), str(tree))]


@given(tree=st.dictionaries(_KEY, _TREE, max_size=4))
def test_every_text_is_found_again(tree: dict[str, object]) -> None:
    """Whatever a JSON or YAML document holds, each of its texts is found under its name, byte for byte."""
    for field, value in _leaves(tree):
        assert taken(json.dumps(tree), Format.JSON, field) == value.encode()
        assert taken(yaml.safe_dump(tree), Format.YAML, field) == value.encode()


@given(content=st.binary(max_size=300), form=st.sampled_from(Format), field=st.text(min_size=1, max_size=9))
def test_nothing_raises(content: bytes, form: Format, field: str) -> None:
    """Any bytes give a value or a problem, whatever field is asked for."""
    assert isinstance(taken(content, form, field), bytes | Problem)


@given(
    content=st.text("{}[]:,&*!|>-?\"#%@` \n\tab<=$\\'", max_size=200),
    form=st.sampled_from(Format),
    field=st.sampled_from(["a", "a.a", "0", "a.0"]),
)
def test_nothing_raises_for_what_looks_like_a_document(content: str, form: Format, field: str) -> None:
    """The same for texts of the formats' own characters."""
    assert isinstance(taken(content, form, field), bytes | Problem)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (
            Format.YAML,
            "a: &a [" + "x," * 100 + "]\n" + "".join(f"b{n}: &b{n} [*a,*a]\n" for n in range(900)),
        ),
        (Format.YAML, "a: " + "- " * 30_000),
        (Format.DOTENV, 'A="' + '\\"' * 30_000),
        (Format.DOTENV, "A='" + "\\'" * 30_000),
        (Format.DOTENV, "A" * 60_000),
        (Format.DOTENV, "=\n" * 30_000),
        (Format.JSON, "[" + "1," * 30_000),
    ],
)
@pytest.mark.timeout(60)
def test_hostile_documents_end(form: Format, text: str) -> None:
    """A file at the limit that is made to take long is read within the test's limit of time."""
    began = time.process_time()
    taken(text, form, "a")
    assert time.process_time() - began < 30


def test_a_reader_of_yaml_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some builds of PyYAML have only a loader in Python, with other errors: none of them ends the agent."""
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert taken(YAML, Format.YAML, "db.password") == b"hunter2"
    assert taken(r'a: "\UFFFFFFFF"', Format.YAML, "a") is Problem.MALFORMED


def published(content: bytes) -> Publication:
    """A source of one file."""
    return Publication({"": Snapshot(SourceGeneration(1, 1, committed=True), {"f": Secret(content)})})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"x\n", Secret(b"x")),
        (b"x\r\n", Secret(b"x")),
        (b"x\n\n", Secret(b"x\n")),
        (b"x", Secret(b"x")),
        (b"x\r", Secret(b"x\r")),
        (b" x \n", Secret(b" x ")),
        (b"\n", Problem.EMPTY),
    ],
)
def test_trim(content: bytes, expected: Secret | Problem) -> None:
    """One newline goes from the end, and nothing else; a value of a newline alone is empty."""
    assert published(content).value(CredentialConfig(secret="f", trim=True)) == expected
    assert published(content).value(CredentialConfig(secret="f")) == Secret(content)


def test_trim_of_a_field() -> None:
    """A field is taken first, and trimmed then; a file is parsed once for all its fields."""
    source = published(b'{"a": "x\\n", "b": "y"}')
    of = {"secret": "f", "format": Format.JSON}
    assert source.value(CredentialConfig(**of, field="a", trim=True)) == Secret(b"x")  # type: ignore[arg-type]  # what it is
    assert source.value(CredentialConfig(**of, field="b")) == Secret(b"y")  # type: ignore[arg-type]  # the same
    assert len(source._documents) == 1


def test_no_value_shows() -> None:
    """Neither a parsed file nor what is published of it shows a value."""
    document = parse(Secret(b"A=hunter2"), Format.DOTENV)
    source = published(b'{"a": "hunter2"}')
    source.value(CredentialConfig(secret="f", format=Format.JSON, field="a"))
    assert "hunter2" not in repr(document) + repr(source)
