"""When silence becomes loss: never early, never without a restart before, and never late."""

from hypothesis import given
from hypothesis import strategies as st

from fleet.region.silence import Silence, SilencePolicy, Verdict, look

NOW = 1_000_000_000
policies = st.builds(
    SilencePolicy,
    restart_ms=st.integers(1_000, 60_000),
    starting_ms=st.integers(200_000, 400_000),
    stuck_ms=st.integers(61_000, 150_000),
    look_ms=st.integers(1_000, 10_000),
)
signs = st.sampled_from(["none", "none", "answers", "starting"])


@given(policies, st.lists(st.tuples(st.integers(1, 120_000), signs), max_size=200), st.integers(0, 13_000))
def test_loss_follows_a_restart_and_a_silence_that_was_watched(
    policy: SilencePolicy, steps: list[tuple[int, str]], ago: int
) -> None:
    now = NOW
    silence = Silence.begun(now - ago, now)
    quiet = since = ago  # as far as somebody looked
    restarts = 0
    for gap, sign in steps:
        now += gap
        quiet, since = quiet + min(gap, policy.look_ms), since + min(gap, policy.look_ms)
        silence, verdict = look(silence, now, policy)
        if verdict is Verdict.HUNG:
            assert quiet >= policy.restart_ms
            restarts += 1
        if verdict is Verdict.LOST:
            assert since >= policy.starting_ms or (quiet >= policy.lost_ms and restarts)
            return
        if sign != "none":
            silence = silence.sign(now, starting=sign == "starting")
            quiet = restarts = 0


@given(policies, st.integers(0, 13_000), st.integers(250, 1_000))
def test_dead_silence_is_loss_within_twice_the_time_of_a_restart(policy: SilencePolicy, ago: int, pace: int) -> None:
    """Under regular looks, counted from when the node was last heard."""
    silence, now, verdicts = Silence.begun(NOW - ago, NOW), NOW, list[Verdict]()
    while Verdict.LOST not in verdicts:
        now += pace
        silence, verdict = look(silence, now, policy)
        verdicts.append(verdict)
        late = max(0, ago - policy.restart_ms)  # a restart is asked for first, however late the silence was noticed
        assert now - (NOW - ago) <= policy.lost_ms + late + 2 * pace
    assert verdicts.count(Verdict.HUNG) == 1
    assert now - (NOW - ago) >= policy.lost_ms


@given(policies, st.integers(500, 1_000))
def test_who_says_that_it_starts_is_not_killed_but_lost_at_last(policy: SilencePolicy, pace: int) -> None:
    silence, now = Silence.begun(NOW, NOW), NOW
    verdict = Verdict.WAIT
    while verdict is Verdict.WAIT:
        now += pace
        silence = silence.sign(now, starting=True)
        silence, verdict = look(silence, now, policy)
    assert verdict is Verdict.LOST
    assert policy.starting_ms <= now - NOW <= policy.starting_ms + pace


@given(policies, st.integers(500, 1_000))
def test_who_answers_without_a_list_is_begun_anew(policy: SilencePolicy, pace: int) -> None:
    silence, now = Silence.begun(NOW, NOW), NOW
    verdict = Verdict.WAIT
    while verdict is Verdict.WAIT:
        now += pace
        silence = silence.sign(now)
        silence, verdict = look(silence, now, policy)
    assert verdict is Verdict.STUCK
    assert now - NOW <= policy.stuck_ms + pace


@given(policies, st.integers(0, 10**9))
def test_one_look_after_a_long_sleep_loses_nobody(policy: SilencePolicy, slept: int) -> None:
    """The manager's machine was frozen."""
    silence, verdict = look(Silence.begun(NOW, NOW), NOW + slept, policy)
    assert verdict is (Verdict.HUNG if policy.restart_ms <= min(slept, policy.look_ms) else Verdict.WAIT)
    assert silence.looked == NOW + slept
