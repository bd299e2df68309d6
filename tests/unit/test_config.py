"""Settings: where they come from, in which order, and what is refused."""

from __future__ import annotations

import ast
import traceback
from pathlib import Path

import pytest

from dlm import config
from dlm.config import Settings, load, parse
from dlm.errors import InvalidInput, NotFound

CHECKOUT = Path(__file__).parents[2]
STARTING = (
    "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output",
    "os.system", "os.popen", "os.spawnv", "os.posix_spawn", "os.execv", "asyncio.create_subprocess_exec",
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without configuration files."""
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "my.cfg") -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    return name


def test_without_anything_the_defaults_hold() -> None:
    assert load(environ={}) == Settings()
    assert Settings().judge_chunk_files == 50_000


def test_a_file_beats_the_default_the_environment_the_file_and_a_flag_both() -> None:
    path = write("[judge]\nbatch_rules = 1\nbatch_changes = 1\nchunk_files = 1\n")
    environ = {"DLM_JUDGE_BATCH_CHANGES": "2", "DLM_JUDGE_CHUNK_FILES": "2"}
    settings = load(path, environ, {"judge_chunk_files": "3"})
    assert (settings.judge_batch_rules, settings.judge_batch_changes, settings.judge_chunk_files) == (1, 2, 3)


def test_the_file_is_found_by_its_usual_names() -> None:
    write("[web]\nport = 2\n", "etc/dlm.cfg")
    assert load(environ={}).web_port == 2
    write("[web]\nport = 1\n", "var/dlm.cfg")
    assert load(environ={}).web_port == 1
    assert load(environ={"DLM_CONFIG": write("[web]\nport = 3\n")}).web_port == 3


def test_a_file_that_was_named_must_be_there() -> None:
    with pytest.raises(NotFound, match=r"nowhere\.cfg"):
        load("nowhere.cfg", {})


def test_an_unknown_key_in_the_file_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(InvalidInput, match=r"\[judge\] batch_rule is no setting") as caught:
        load(write("[judge]\nbatch_rule = 1\n"), {})
    assert caught.value.hint == "Did you mean [judge] batch_rules?"
    assert caught.value.field == "judge_batch_rule"


def test_an_unknown_variable_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(InvalidInput, match="DLM_DATABASE_DNS") as caught:
        load(environ={"DLM_DATABASE_DNS": "x"})
    assert caught.value.hint == "Did you mean DLM_DATABASE_DSN?"


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nonsense"):
        load(environ={}, flags={"nonsense": "x"})


def test_variables_that_are_no_settings_pass() -> None:
    assert load(environ={"DLM_KILL_AT": "x", "DLM_TEST_SEED": "1", "HOME": "/"}) == Settings()


def test_the_short_variables_of_the_client_give_way_to_the_full_ones() -> None:
    settings = load(environ={"DLM_URL": "http://a", "DLM_TOKEN": "t", "DLM_CLIENT_URL": "http://b"})
    assert (settings.client_url, settings.client_token) == ("http://b", "t")


def test_a_percent_sign_in_a_dsn_stands_for_itself() -> None:
    dsn = "postgresql+psycopg://u:p%40ss@host/dlm"
    assert load(write(f"[database]\ndsn = {dsn}\n"), {}).database_dsn == dsn


@pytest.mark.parametrize(
    "text", ["hunter2\n", "[secrets]\nkey hunter2\n", "[secrets]\nkey = hunter2\nkey = hunter2\n"]
)
def test_a_file_that_is_no_ini_file_is_refused_with_its_name_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"my\.cfg cannot be read") as caught:
        load(write(text), {})
    assert "line" in str(caught.value) and "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("judge_batch_rules", "many"),
        ("judge_batch_rules", "1.5"),
        ("judge_batch_rules", "0"),
        ("web_port", "65536"),
        ("breaker_loss_share", "1.01"),
        ("breaker_loss_share", "nan"),
        ("judge_interval_s", "inf"),
        ("log_level", "loud"),
        ("judge_trust_unverified", "perhaps"),
    ],
)
def test_what_is_of_the_wrong_type_or_out_of_range_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=name) as caught:
        parse(name, text)
    assert caught.value.field == name


@pytest.mark.parametrize("name", list(config.DECLARED))
def test_every_default_is_valid_and_explained(name: str) -> None:
    declared = config.DECLARED[name]
    assert parse(name, str(declared.default)) == declared.default
    assert type(declared.default).__name__ == declared.type  # a float given as 5 would refuse 0.5
    assert declared.metadata["help"]


def test_the_example_file_is_fresh_and_says_what_holds_anyway() -> None:
    assert (CHECKOUT / "etc" / "dlm.cfg.example").read_text() == config.example()
    lines = [line.removeprefix("#") for line in config.example().splitlines() if not line.startswith("# ")]
    assert load(write("\n".join(lines)), {}) == Settings()


def test_the_reference_page_is_fresh() -> None:
    assert (CHECKOUT / "docs" / "reference" / "settings.md").read_text() == config.reference()


def test_programs_that_are_not_dlms_get_no_secret_setting() -> None:
    ours = {"PATH": "/bin", "DLM_SECRETS_KEY": "k", "DLM_DATABASE_DSN": "d", "DLM_TOKEN": "t", "DLM_CLIENT_TOKEN": "t"}
    assert config.for_others({**ours, "DLM_LOG_LEVEL": "info"}) == {"PATH": "/bin", "DLM_LOG_LEVEL": "info"}
    config.forget_secrets(ours)
    assert ours == {"PATH": "/bin"}


def test_every_program_that_dlm_starts_is_told_its_environment() -> None:
    """What says nothing passes on all of ours, and the key of the secrets with it."""
    calls = [
        (path.name, node)
        for path in (CHECKOUT / "lib" / "dlm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in STARTING
    ]
    assert len(calls) > 5
    silent = [f"{name}:{node.lineno}" for name, node in calls if "env" not in {word.arg for word in node.keywords}]
    assert silent == []
