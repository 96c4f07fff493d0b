"""Settings: names that are no setting are refused, in the file and in the environment."""

import pytest

from schemas.settings import UnknownSetting, load_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["RECLAIM_COLOUR", "RECLAIM_DICM_PORT", "RECLAIM_STATE"])
def test_a_mistyped_variable_is_refused_by_name(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    with pytest.raises(UnknownSetting, match=name):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RECLAIM_DICOM_PORT", "104"),
        ("RECLAIM_DEAD_LETTERS_MAX_RATIO", "0.2"),
        ("RECLAIM_STATE_DIR", "x"),
        ("RECLAIM_LLM_BASE_URL", ""),
    ],
)
def test_every_true_name_is_taken(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    load_settings()


def test_the_value_of_a_group_with_an_underscore_arrives(monkeypatch):
    monkeypatch.setenv("RECLAIM_DEAD_LETTERS_MAX_RATIO", "0.2")
    assert load_settings().dead_letters.max_ratio == 0.2


def test_a_mistyped_table_of_the_file_is_refused_by_name(elsewhere):
    (elsewhere / "reclaim.toml").write_text("[polcy]\napprove_remedies = true\n")
    with pytest.raises(UnknownSetting, match="polcy"):
        load_settings()
