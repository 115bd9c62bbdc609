"""What a node concludes from the engine's list, and from how many passes."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.node import hearing
from fleet.node.hearing import Hearing
from fleet.node.model import RunState, RunView
from fleet.node.reconcile import Finding, Suspicions, compare, end_of
from fleet.node.run import Run
from fleet.node.runtime import Observed, RunKey
from fleet.node.words import Beat

KEYS = [RunKey(name, 1) for name in "abcd"]
listed = st.sampled_from(["running", "ended", "created"])


def observed(key: RunKey, how: str) -> Observed:
    return Observed(key, how == "running", (), {}, exit_code=3 if how == "ended" else None, ended_at=7)


lists = st.dictionaries(st.sampled_from(KEYS), listed)
knowledge = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(list(RunState)))


@given(lists, knowledge)
def test_agreement_is_left_alone_and_every_disagreement_is_found_once(
    there: dict[RunKey, str], states: dict[RunKey, RunState]
) -> None:
    found = compare([observed(key, how) for key, how in there.items()], states)
    keys = [key for _, key in found]
    assert len(keys) == len(set(keys))
    for key in {*there, *states}:
        how, state = there.get(key), states.get(key)
        if state in (RunState.PREPARING, RunState.CREATING):
            assert key not in keys, "its launch is under way"
        elif state in (RunState.BOOTING, RunState.RUNNING):
            assert (key in keys) == (how in (None, "ended"))
        elif state is None:
            assert key in keys
        else:
            assert (key in keys) == (how == "running")


@given(st.lists(lists, min_size=1, max_size=12), knowledge)
def test_nothing_is_believed_that_one_pass_has_seen(
    passes: list[dict[RunKey, str]], states: dict[RunKey, RunState]
) -> None:
    suspicions = Suspicions()
    history = [compare([observed(key, how) for key, how in there.items()], states) for there in passes]
    for number, found in enumerate(history):
        for suspect in suspicions.confirm(found):
            before = history[max(0, number + 1 - suspect[0].passes) : number + 1]
            assert len(before) == suspect[0].passes >= 2
            assert all(suspect in one for one in before)


def test_an_end_is_told_as_the_engine_lists_it() -> None:
    assert end_of(KEYS[0], observed(KEYS[0], "ended"), 9).exit_code == 3
    gone = end_of(KEYS[0], None, 9)
    assert (gone.exit_code, gone.at) == (-1, 9)
    assert "removed" in gone.tail
    assert Finding.HALF_MADE.passes == 8, "two minutes at the usual pace, as docs/timeouts.md says"


async def test_a_machine_that_stood_still_ends_no_promise() -> None:
    """The beats that came meanwhile have not been read yet."""
    told: list[str] = []
    run = Run(RunView(KEYS[0], "n", RunState.RUNNING, 1))
    now = [0.0]
    clock = hearing.time.monotonic
    hearing.time.monotonic = lambda: now[0]  # type: ignore[assignment]
    try:
        heard = Hearing({KEYS[0]: run}.get, lambda _run, silent: told.append(silent))
        heard.heard(KEYS[0], Beat(5.0))
        told.clear()
        now[0] += 3600
        await heard.look()
        assert told == []
        for _ in range(11):
            now[0] += 0.5
            await heard.look()
    finally:
        hearing.time.monotonic = clock  # type: ignore[assignment]
    assert told, "it is found all the same, a promise later"
