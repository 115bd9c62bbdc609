"""`fleet simulate matchmaking`: the same population for all, legal matches, and near the exact solver."""

import json

from typer.testing import CliRunner

from fleet.cli_simulate import simulate
from fleet.simulate.match_compare import OURS, Terms, compare
from fleet.simulate.match_others import exact
from fleet.simulate.match_people import crowd
from tests.unit.match_kit import duel


def test_ours_is_fairer_than_others_on_the_same_population() -> None:
    found = compare(Terms("2v2", per_minute=240, seconds=60))
    ours, served, fixed = found[OURS], found["first come first served"], found["greedy, fixed windows"]
    assert ours.faults == []
    assert ours.skill_spread < fixed.skill_spread < served.skill_spread
    assert ours.win_chance_off < fixed.win_chance_off < served.win_chance_off
    assert ours.worth_per_player > max(fixed.worth_per_player, served.worth_per_player)
    assert ours.matched > 0.9


def test_the_command_prints_json_and_refuses_what_it_does_not_know() -> None:
    runner = CliRunner()
    told = runner.invoke(simulate, ["matchmaking", "--mode", "duel", "--minutes", "0.5", "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["strategies"]["ours"]["matches"] > 0
    for wrong in (["--mode", "chess"], ["--curve", "flat"], ["--plot", "x.pdf"]):
        assert runner.invoke(simulate, ["matchmaking", "--minutes", "0.5", *wrong]).exit_code == 2


def test_the_solver_finds_the_best_pairs() -> None:
    from tests.unit.match_kit import lobby

    mode = duel()
    # Greedy from the middle would leave both ends alone.
    tickets = [lobby(mode, name, 0.0, mmr=mmr) for name, mmr in (("a", 0), ("b", 90), ("c", 110), ("d", 200))]
    best = exact(tickets, mode, 0.0)
    assert best is not None
    assert (best.matches, best.proved) == (2, True)


def test_a_population_is_the_same_for_the_same_seed() -> None:
    assert crowd("5v5", 20, seed=3) == crowd("5v5", 20, seed=3) != crowd("5v5", 20, seed=4)
