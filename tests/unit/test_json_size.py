"""Data of clients that is kept as JSON."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import BadRequest, PayloadTooLarge
from fleet.json_size import check_json

VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(), lambda kids: st.dictionaries(st.text(), kids)
)


@given(VALUES, st.integers(0, 200))
def test_what_passes_can_be_written_and_is_small_enough(value: object, most: int) -> None:
    try:
        check_json(value, "state", most)
    except (BadRequest, PayloadTooLarge):
        return
    assert len(orjson.dumps(value)) <= most


@pytest.mark.parametrize("text", ['{"a": 9223372036854775808123}', '{"a": "\\ud800"}', '{"\\udfff": 1}'])
def test_json_that_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="settings cannot be stored"):
        check_json(json.loads(text), "settings", 1000)


def test_what_is_too_large_is_refused_with_both_sizes() -> None:
    with pytest.raises(PayloadTooLarge, match="takes 12 bytes; at most 11 are kept"):
        check_json({"a": "1234"}, "state", 11)
