"""Settings: four places, one order, and no key that is silently ignored."""

import pytest

from maestro_core import Budget, Cap, MaestroError
from maestro_core.errors import SettingsError
from maestro_core.settings import Settings


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Settings are read from the current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place, **files):
    for name, text in files.items():
        (place / f"{name}.toml").write_text(text, encoding="utf-8")


def test_defaults_need_nothing():
    settings = Settings()
    assert settings.ledger == "sqlite:///maestro.db"
    assert settings.caps == settings.budgets == ()
    assert settings.allow_nanos == 0
    assert set(settings.origins.values()) == {"default"}
    assert set(settings.origins) == set(Settings.model_fields)


def test_keyword_then_environment_then_maestro_toml_then_pyproject(place, monkeypatch):
    everywhere = {
        "wait_s": 4,
        "hold_ttl_s": 40,
        "min_output_tokens": 400,
        "require_mode": "warn",
        "ledger": "memory:",
    }
    pyproject = "".join(f"{key} = {value!r}\n" for key, value in everywhere.items())
    write(
        place,
        pyproject=f"[project]\nname = 'x'\n[tool.maestro]\n{pyproject}",
        maestro="wait_s = 3\nhold_ttl_s = 30\nmin_output_tokens = 300\n",
    )
    monkeypatch.setenv("MAESTRO_WAIT_S", "2")
    monkeypatch.setenv("MAESTRO_HOLD_TTL_S", "20")
    settings = Settings(wait_s=1)
    assert settings.wait_s == 1
    assert settings.hold_ttl_s == 20
    assert settings.min_output_tokens == 300
    assert settings.require_mode == "warn"
    origins = {key: origin for key, origin in settings.origins.items() if origin != "default"}
    assert origins == {
        "wait_s": "argument",
        "hold_ttl_s": "MAESTRO_HOLD_TTL_S",
        "min_output_tokens": "maestro.toml",
        "require_mode": "pyproject.toml",
        "ledger": "pyproject.toml",
    }


def test_environment_variables_are_found_in_lower_case_too(monkeypatch):
    monkeypatch.setenv("maestro_wait_s", "7")
    settings = Settings()
    assert (settings.wait_s, settings.origins["wait_s"]) == (7, "MAESTRO_WAIT_S")


def in_argument(place, monkeypatch):
    return {"legder": "memory:"}


def in_environment(place, monkeypatch):
    monkeypatch.setenv("MAESTRO_LEGDER", "memory:")
    return {}


def in_maestro_toml(place, monkeypatch):
    write(place, maestro='legder = "memory:"')
    return {}


def in_pyproject(place, monkeypatch):
    write(place, pyproject='[tool.maestro]\nlegder = "memory:"')
    return {}


@pytest.mark.parametrize("misspelled", [in_argument, in_environment, in_maestro_toml, in_pyproject])
def test_an_unknown_key_is_an_error_in_every_place_and_names_the_closest(place, monkeypatch, misspelled):
    arguments = misspelled(place, monkeypatch)
    with pytest.raises(SettingsError, match=r"(?i)unknown setting .*legder.*did you mean 'ledger'"):
        Settings(**arguments)


def test_a_key_like_no_other_lists_what_there_is():
    with pytest.raises(SettingsError, match="unknown setting 'xyzzy'; known are alerts, budgets, caps, "):
        Settings(xyzzy=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alerts": {"webhok": "x"}}, "'alerts.webhok'; did you mean 'webhook'"),
        ({"alerts": {"routes": [{"wher": {}}]}}, "'alerts.routes.0.wher'; did you mean 'where'"),
        ({"rules": [{"alow": ["x"]}]}, "'rules.0.alow'; did you mean 'allow'"),
    ],
)
def test_an_unknown_key_of_a_table_names_the_closest_of_that_table(settings, said):
    with pytest.raises(SettingsError, match=f"unknown setting {said}"):
        Settings(**settings)


@pytest.mark.parametrize("variable", ["MAESTRO_WAIT_S__X", "MAESTRO_CAPPS", "MAESTRO_"])
def test_a_variable_that_names_no_setting_is_an_error(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=f"unknown setting {variable} in the environment"):
        Settings()


@pytest.mark.parametrize("variable", ["MAESTRO_ATTRIBUTION", "MAESTRO_AUTO", "MAESTROS_OWN"])
def test_variables_that_are_no_settings_are_left_alone(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert set(Settings().origins.values()) == {"default"}


def test_errors_can_be_caught_as_maestros_or_as_value_errors():
    for kind in (MaestroError, ValueError):
        with pytest.raises(kind):
            Settings(wait_s=-1)


EXPECTED = (
    Cap("0.50", per="run"),
    Cap(20, per="customer", every="day", alert_at=0.8),
    Cap(3000, where={"team": "growth"}, every="month"),
)


def test_caps_come_from_toml(place):
    write(place, maestro="""
        time_zone = "Europe/Berlin"
        [[caps]]
        limit = "0.50"
        per = "run"
        [[caps]]
        limit = 20
        per = ["customer"]
        every = "day"
        alert_at = 0.8
        [[caps]]
        limit = "3000"
        where = { team = "growth" }
        every = "month"
        [[budgets]]
        limit = "500"
        per = "feature"
    """)  # fmt: skip
    settings = Settings()
    assert settings.caps == EXPECTED
    assert settings.budgets == (Budget(500, per="feature"),)
    assert settings.caps[1].meter(settings.time_zone).id == "customer every day Europe/Berlin"


def test_caps_come_from_the_environment_as_json(monkeypatch):
    monkeypatch.setenv(
        "MAESTRO_CAPS",
        """[{"limit": "0.50", "per": "run"}, {"limit": 20, "per": "customer", "every": "day", "alert_at": 0.8},
            {"limit": "3000", "where": {"team": "growth"}, "every": "month"}]""",
    )
    assert Settings().caps == EXPECTED


def test_caps_come_as_objects_or_dicts():
    assert (
        Settings(caps=[EXPECTED[0], {"limit": "20", "per": "customer", "every": "day", "alert_at": 0.8}]).caps
        == EXPECTED[:2]
    )


@pytest.mark.parametrize(
    ("cap", "why"),
    [
        ('{"limit": 0.5}', 'caps.0: Cap limit must be a str.*write "0.5" in quotes'),
        ('{"limt": "5"}', "caps.0: unknown key 'limt'; a Cap has limit, per, where, every, alert_at"),
        ('{"per": "run"}', 'caps.0: no "limit"'),
        ('{"limit": "5", "every": "daily"}', 'did you mean "day"'),
        ('{"limit": "5", "where": {"team": 3}}', "where team=3"),
        ('{"limit": "5", "per": 3}', "caps.0: "),
        ("3", "caps.0: "),
    ],
)
def test_a_malformed_cap_says_which_and_why(monkeypatch, cap, why):
    monkeypatch.setenv("MAESTRO_CAPS", f"[{cap}]")
    with pytest.raises(SettingsError, match=why):
        Settings()


@pytest.mark.parametrize("text", ["20", "not json", '{"limit": "20"}'])
def test_caps_in_the_environment_are_a_json_list(monkeypatch, text):
    monkeypatch.setenv("MAESTRO_CAPS", text)
    with pytest.raises(SettingsError, match="caps"):
        Settings()


def test_two_caps_on_the_same_calls_are_an_error_whatever_their_order():
    first = Cap(5, per=("team", "model"), every="day")
    second = Cap(6, per=("model", "team"), every="day", alert_at=0.5)
    with pytest.raises(SettingsError, match=r"caps: \$6.00 per model,team every day and \$5.00 .* keep one"):
        Settings(caps=[first, second])
    assert len(Settings(caps=[first], budgets=[Budget(4, per=("team", "model"), every="day")]).caps) == 1


@pytest.mark.parametrize("name", ["maestro", "pyproject"])
@pytest.mark.parametrize("content", [b"wait_s = = 5", b"[[caps]", b'ledger = "\xff"'])
def test_a_file_that_is_no_toml_is_a_settings_error(place, name, content):
    (place / f"{name}.toml").write_bytes(content)
    with pytest.raises(SettingsError, match="not valid TOML"):
        Settings()


@pytest.mark.parametrize("key", ["require", "dimensions"])
@pytest.mark.parametrize("text", ["team,feature", " team , feature ", '["team", "feature"]'])
def test_names_are_a_list_or_parted_by_commas(monkeypatch, key, text):
    monkeypatch.setenv(f"MAESTRO_{key.upper()}", text)
    assert getattr(Settings(), key) == ("team", "feature")


@pytest.mark.parametrize(
    ("settings", "variable", "nanos"),
    [
        ({"on_ledger_error": "refuse"}, None, 0),
        ({"on_ledger_error": {"allow_usd": "5"}}, None, 5_000_000_000),
        ({}, ("MAESTRO_ON_LEDGER_ERROR", '{"allow_usd": "0.25"}'), 250_000_000),
        ({}, ("MAESTRO_ON_LEDGER_ERROR__ALLOW_USD", "7"), 7_000_000_000),
    ],
)
def test_what_may_be_spent_while_the_ledger_is_gone(monkeypatch, settings, variable, nanos):
    if variable:
        monkeypatch.setenv(*variable)
    assert Settings(**settings).allow_nanos == nanos


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"wait_s": -1}, "wait_s"),
        ({"hold_ttl_s": 0}, "hold_ttl_s"),
        ({"min_output_tokens": 0}, "min_output_tokens"),
        ({"on_unknown_price": "free"}, "on_unknown_price"),
        ({"on_ledger_error": "ignore"}, 'on_ledger_error: \'ignore\' is neither "refuse" nor {"allow_usd"'),
        ({"on_ledger_error": {}}, "on_ledger_error: {} is neither"),
        ({"on_ledger_error": {"allow_usd": "much"}}, "allow_usd 'much' is not an amount"),
        ({"time_zone": "Mars/Olympus"}, "time_zone: 'Mars/Olympus' is no time zone"),
        ({"time_zone": "../etc/passwd"}, "is no time zone"),
        ({"caps": Cap(5)}, r"caps: \$5.00 is no list; put it in brackets"),
        ({"caps": [Budget(5)]}, r"caps\.0"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_key(settings, why):
    with pytest.raises(SettingsError, match=why) as caught:
        Settings(**settings)
    assert "\n" not in str(caught.value)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Settings().wait_s = 5
