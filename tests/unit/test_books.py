"""The region's books: what gathers between two commits is as few statements as can be, and no more is told."""

from structlog.testing import capture_logs

from fleet.region.books import Books
from fleet.store.tables import Server
from fleet.telemetry.request_id import bind_request_id


def server(name: str) -> Server:
    return Server(
        instance_id=name,
        project_id="p",
        region="r",
        name=name,
        status="launching",
        step="queued",
        compute_size="small",
        build_id="b",
        version_tag="default",
        created_at=1,
        updated_at=1,
        launched_at=1,
        step_at=1,
    )


def test_rows_of_which_the_same_columns_change_go_into_one_statement() -> None:
    books = Books()
    rows = [server(str(number)) for number in range(10)]
    books.load(rows)
    for row in rows[:6]:
        books.step(row, 5, "placed", node_id="n")
    for row in rows[4:8]:  # two of them again, so both changes of theirs are one
        books.change(row, 6, match_id="m")
    batch = books.take()
    updates = [values for _, values in batch.statements[:-1]]
    assert sorted(len(values) for values in updates if isinstance(values, list)) == [2, 2, 4]
    journal = batch.statements[-1][1]
    assert isinstance(journal, list)
    assert [entry["instance_id"] for entry in journal] == list("012345")
    assert sorted(batch.touched) == list("01234567")
    assert batch.told == []
    assert not books.take().statements


def test_a_new_row_is_inserted_as_it_is_when_it_is_committed() -> None:
    books = Books()
    row = server("new")
    books.add(row, 1)
    books.step(row, 2, "placed", node_id="n")
    (_, inserted), (_, journal) = books.take().statements
    assert isinstance(inserted, list)
    assert isinstance(journal, list)
    assert [(r["step"], r["node_id"]) for r in inserted] == [("placed", "n")]
    assert [entry["type"] for entry in journal] == ["queued", "placed"]


def test_each_step_is_logged_with_the_request_it_was_made_for_and_no_other() -> None:
    books = Books()
    rows = [server(name) for name in "abc"]
    books.load(rows)
    bind_request_id("first")
    books.step(rows[0], 2, "placed")
    books.note(rows[1], 3, "claimed", None, "second")
    bind_request_id("")
    books.step(rows[2], 4, "placed")
    with capture_logs() as lines:
        books.take()
    (line,) = lines
    assert [(step["instance_id"], step.get("request_id")) for step in line["steps"]] == [
        ("a", "first"),
        ("b", "second"),
        ("c", None),
    ]
    assert line["request_id"] is None
