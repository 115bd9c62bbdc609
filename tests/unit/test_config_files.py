"""Config files: a broken edit changes nothing and says where it is broken; what is taken out stays known."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from structlog.testing import capture_logs

from fleet.config_files import BadConfig, ConfigFile, Invalid, KnownDefinitions, read_config, section, validated
from fleet.ops.config_check import check_configs
from fleet.ops.home import OpsError
from fleet.settings import FleetSettings, StripeSettings


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    weight: int


def things(content: Any) -> dict[str, Thing]:
    return {
        name: validated(Thing.model_validate, value, "things", name)
        for name, value in section(content, "things").items()
    }


GOOD = "# all of them\nthings:\n  one:\n    weight: 1\n"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("things:\n  one: {weight: 1}\n  two:\n    weight: heavy\n", 4, "weight"),
        ("things:\n  one: {weight: 1}\n  two: {weihgt: 3}\n", 3, "weihgt"),
        ("things:\n  one: {weight: 1\n  two: 3\n", 3, "expected"),
        ("# nothing\nthings:\n", 2, "at least one"),
        ("", 1, "at least one"),
        ("things: 5", 1, "at least one"),
        ("- a\n- b\n", 1, "at least one"),
        ("things:\n  one: 4\n", 2, "one"),
    ],
)
def test_an_error_names_file_line_and_reason(tmp_path: Path, text: str, line: int, word: str) -> None:
    file = tmp_path / "things.yaml"
    file.write_text(text)
    with pytest.raises(BadConfig) as told:
        read_config(file, things)
    assert told.value.line == line
    assert str(told.value).startswith(f"{file}, line {line}: ")
    assert word in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read"):
        read_config(tmp_path / "none.yaml", things)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadConfig, match="cannot be read"):
        read_config(tmp_path / "binary.yaml", things)


def test_a_broken_edit_keeps_the_last_good_one_and_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "things.yaml"
    path.write_text(GOOD)
    file = ConfigFile(path, things)
    assert file.now()["one"].weight == 1
    version = file.version
    path.write_text(GOOD.replace("1\n", "many\n"))
    with capture_logs() as told:
        for _ in range(3):
            assert file.now()["one"].weight == 1
    assert [(line["event"], line["line"], line["kept"]) for line in told] == [("config_rejected", 4, True)]
    assert file.refused is not None
    path.write_text(GOOD.replace("1\n", "12\n"))
    assert file.now()["one"].weight == 12
    assert file.refused is None
    assert file.version == version + 1
    path.unlink()
    assert file.now()["one"].weight == 12


def test_a_process_that_begins_while_the_file_is_broken_has_the_last_good_text(tmp_path: Path) -> None:
    path, kept = tmp_path / "things.yaml", tmp_path / "kept.yaml"
    path.write_text(GOOD)
    assert ConfigFile(path, things, kept).now()["one"].weight == 1
    path.write_text("things: [")
    successor = ConfigFile(path, things, kept)
    assert successor.now()["one"].weight == 1
    assert successor.refused is not None
    with pytest.raises(BadConfig, match="line 1"):
        ConfigFile(path, things).now()


def test_what_was_taken_out_is_known_after_a_restart_by_its_last_definition(tmp_path: Path) -> None:
    known = KnownDefinitions(tmp_path / "things.json")
    assert known.remember({"one": {"weight": 1}, "two": {"weight": 2}}).keys() == {"one", "two"}
    assert known.remember({"two": {"weight": 22}})["one"] == {"weight": 1}
    assert KnownDefinitions(tmp_path / "things.json").remember({})["two"] == {"weight": 22}


def test_definitions_that_cannot_be_kept_are_used_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    known = KnownDefinitions(tmp_path / "file" / "things.json")
    assert known.remember({"one": {"weight": 1}}) == {"one": {"weight": 1}}


def test_a_validator_may_name_the_place_itself(tmp_path: Path) -> None:
    def refuse(_content: Any) -> None:
        raise Invalid("too many of them", "things", "one")

    file = tmp_path / "things.yaml"
    file.write_text(GOOD)
    with pytest.raises(BadConfig, match="line 3: too many"):
        read_config(file, refuse)


def test_a_fleet_does_not_start_with_broken_files_and_says_all_that_is_wrong(tmp_path: Path) -> None:
    plans, serve, customers = (tmp_path / name for name in ("plans.yaml", "serve.yaml", "customers.yaml"))
    plans.write_text("plans:\n  free:\n    max_servers: many\n")
    serve.write_text("applications:\n  - name: fleet\n")
    customers.write_text("- a\n")
    check_configs(FleetSettings())
    wrong = FleetSettings(plans_config=plans, serve_config=serve, stripe=StripeSettings(customers=customers))
    with pytest.raises(OpsError) as told:
        check_configs(wrong)
    assert f"{plans}, line 3: plans: free: max_servers:" in told.value.detail
    assert f"{serve}, line 2: an application must have an import_path" in told.value.detail
    assert f"{customers}, line 1: it must map" in told.value.detail
