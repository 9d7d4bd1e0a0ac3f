"""The passwords of URIs as people write them; addresses without any stay usable."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipray.secrets import clean, redacted

SECRET = "s3cr3t-Pa55"


@pytest.mark.parametrize(
    "uri",
    [
        f"https://me:{SECRET}@host:5000/path",
        f"https://{SECRET}@host",
        f"postgresql+psycopg2://me:{SECRET}@host/db?sslmode=require",
        f"mysql://me:{SECRET}@word@host/db",
        f"mysql://me:{SECRET}/slash@host/db",
        f"postgresql://me:a/b?c{SECRET}@host/db",
        f"https://host/a?token={SECRET}",
        f"https://host/a?x=1&X-Amz-Signature={SECRET}&y=2",
        f"az://container/blob?sv=1;sig={SECRET}",
        f"https://host/a#access_token={SECRET}",
        f"filecache::s3://key:{SECRET}@bucket/x",
        f"a=https://b:c@d,e=ftp://f:{SECRET}@g",
        f"https://host/a?next=https://me:{SECRET}@b",
    ],
)
def test_no_form_of_a_secret_comes_through(uri):
    for text in (uri, f"cannot reach ({uri}): refused", f'"{uri}"', [uri], {"a": (uri,)}, {uri: 1}):
        assert SECRET not in str(clean(text))


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/me@home/workspace",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "https://[::1]:5000/a@b",
        "sqlite:////data/my runs/mlflow.db",
        "file:///data/a.tar",
        "hf-hub:org/name",
        "a@b.c, 3:4@5 and x?y=z",
        "/data/a?b=c@d",
        "gs://bucket/a/*.parquet#test",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert redacted(text) == text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=8, max_size=20))
def test_any_encoded_password_is_hidden(password):
    encoded = quote(password, safe="")
    text = redacted(f"at postgresql://me:{encoded}@host:5432/db, as me")
    assert text == "at postgresql://***@host:5432/db, as me"


def test_a_library_may_quote_the_password_alone_and_decoded():
    uri = "postgresql://me:p%40ssw%2Frd@host/db?sslpassword=otherword"
    text = redacted("no user me:p@ssw/rd, password p%40ssw%2Frd, key otherword", uri)
    assert text == "no user ***, password ***, key ***"


def test_other_values_are_left_alone():
    assert clean({"a": 1, "b": [None, 2.5, True], "c": "x"}) == {
        "a": 1,
        "b": [None, 2.5, True],
        "c": "x",
    }
