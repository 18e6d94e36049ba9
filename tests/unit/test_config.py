"""Settings: where values come from, which win, and the one sentence that names what is wrong."""

import re
from pathlib import Path

import msgspec
import pytest

from gotask import log
from gotask.cli import flags, gotask, output
from gotask.config import ELSEWHERE, load
from gotask.errors import InvalidInput
from gotask.settings import KINDS, ClientSettings, ServerSettings, WorkerSettings, cpu_count, settings_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_flags_win_over_environment_over_file_over_defaults() -> None:
    # Given a file that sets three ports, an environment that sets two, a flag that sets one
    Path("gotask.toml").write_text("http_port = 1001\nmetrics_port = 1002\npostgres_port = 1003\n")
    environ = {"GOTASK_HTTP_PORT": "2001", "GOTASK_METRICS_PORT": "2002"}
    # When the settings are loaded
    held = load(ServerSettings, {"http_port": "3001"}, environ)
    # Then each has the value of the nearest source, and says which that was
    assert (held.http_port, held.metrics_port, held.postgres_port, held.http_workers) == (3001, 2002, 1003, 1)
    assert [held.origin(name) for name in ("http_port", "metrics_port", "postgres_port", "http_workers")] == [
        "flag -http-port",
        "environment GOTASK_METRICS_PORT",
        "gotask.toml",
        "default",
    ]


def test_a_section_holds_for_its_program_only() -> None:
    Path("gotask.toml").write_text("shutdown_timeout = 9\n[worker]\nshutdown_timeout = 60\nqueues = ['a', 'b']\n")
    assert load(ServerSettings, {}, {}).shutdown_timeout == 9
    worker = load(WorkerSettings, {}, {})
    assert (worker.shutdown_timeout, worker.queues) == (60, ("a", "b"))


SPECIAL = {"log_format": "json", "log_level": "debug", "http_addr": "localhost"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in settings_of(kind)],
    ids=lambda part: getattr(part, "SECTION", part),
)
def test_every_setting_can_be_given_in_every_way(kind: type[ServerSettings], name: str) -> None:
    # Given a value other than the default, as text
    one = settings_of(kind)[name]
    text = {int: "7", float: "7", bool: "true"}.get(one.plain) or SPECIAL.get(name, "some-thing")
    quoted = text if one.plain in (int, float, bool) else f"{text!r}"
    # When it comes by flag, by environment and by file
    by_flag, by_environment = load(kind, {name: text}, {}), load(kind, {}, {one.variable: text})
    Path("gotask.toml").write_text(f"[{kind.SECTION}]\n{name} = {quoted}\n")
    by_file = load(kind, {}, {})
    # Then it is the same value, and another than the default
    assert getattr(by_flag, name) == getattr(by_environment, name) == getattr(by_file, name) != one.default


@pytest.mark.parametrize(
    ("given", "environ", "sentence"),
    [
        ({"http_port": "http"}, {}, "-http-port is 'http'; it takes a whole number from 1 to 65535."),
        ({}, {"GOTASK_HTTP_PORT": "70000"}, "GOTASK_HTTP_PORT is '70000'; it takes a whole number from 1 to 65535."),
        ({"log_format": "xml"}, {}, "-log-format is 'xml'; it takes one of: text, json."),
        ({}, {"GOTASK_STORAG": "x"}, "There is no setting GOTASK_STORAG; did you mean GOTASK_STORAGE?"),
        ({}, {"GOTASK_FOO": "1"}, "There is no setting GOTASK_FOO; unset it, or see `gotask up --help`."),
        ({"config": "nowhere.toml"}, {}, "The configuration file nowhere.toml cannot be read: No such file or directory."),
        (
            {"http_addr": "0.0.0.0"},
            {},
            "http-addr is 0.0.0.0, which others can reach: set GOTASK_API_KEYS, or add --allow-anonymous.",
        ),
        ({"metrics_port": "8080"}, {}, "http-port and metrics-port are both 8080: change one, or set metrics-port to 0."),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(given: dict[str, str], environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(sentence)}$"):
        load(ServerSettings, given, environ)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("storag = 'x'", "gotask.toml has an unknown key storag; did you mean storage?"),
        ("[worker]\nqueue = ['a']", "gotask.toml has an unknown key worker.queue; did you mean queues?"),
        ("[workers]\n", "gotask.toml has an unknown key workers; did you mean worker?"),
        ("concurrency = 'many'", "concurrency in gotask.toml is 'many'; it takes a whole number from 0 to 100000, or auto."),
        ("concurrency = 1.5", "concurrency in gotask.toml is 1.5; it takes a whole number from 0 to 100000, or auto."),
    ],
)
def test_a_wrong_file_is_named(text: str, sentence: str) -> None:
    Path("gotask.toml").write_text(text)
    with pytest.raises(InvalidInput, match=f"^{re.escape(sentence)}$"):
        load(WorkerSettings, {}, {})


def test_a_file_that_is_no_toml_is_one_sentence() -> None:
    Path("gotask.toml").write_text("storage = ")
    with pytest.raises(InvalidInput, match=r"^gotask\.toml is not valid TOML: "):
        load(WorkerSettings, {}, {})


def test_variables_of_others_are_left_alone() -> None:
    kubernetes = {
        "GOTASK_SERVICE_HOST": "10.0.0.1",
        "GOTASK_SERVICE_PORT_HTTP": "80",
        "GOTASK_PORT": "tcp://10.0.0.1:80",
        "GOTASK_PORT_80_TCP_ADDR": "10.0.0.1",
        "GOTASK_REDIS_SERVICE_PORT": "6379",
    }
    assert load(ClientSettings, {}, {**dict.fromkeys(ELSEWHERE, ""), **kubernetes}).storage == "sqlite"


def test_every_variable_the_program_reads_is_known() -> None:
    known = set(ELSEWHERE) | {one.variable for kind in KINDS for one in settings_of(kind).values()}
    for path in [*ROOT.glob("gotask/**/*.py"), ROOT / "setup.py"]:
        found = set(re.findall(r"[\"'$]GOTASK_[A-Z_]+[A-Z]\b", path.read_text()))
        assert {name[1:] for name in found} <= known, path


def test_storage_is_composed_of_the_seed_flags() -> None:
    assert load(ServerSettings, {"storage": "redis", "redis_addr": "cache:6380"}, {}).url == "redis://cache:6380"
    assert load(ServerSettings, {"storage": "redis", "redis_addr": "me:pw@cache"}, {}).url == "redis://me:pw@cache"
    assert load(ServerSettings, {"storage": "redis", "redis_addr": "rediss://cache"}, {}).url == "rediss://cache"
    given = {"storage": "postgres", "postgres_host": "db", "postgres_pass": "p@ss/word"}
    assert load(ServerSettings, given, {}).url == "postgres://postgres:p%40ss%2Fword@db:5432/taskqueue"
    assert load(ServerSettings, {"storage": "sqlite:///x.db"}, {}).url == "sqlite:///x.db"


def test_slots_and_processes_fit_each_other() -> None:
    cpus = cpu_count()
    assert (load(WorkerSettings, {}, {}).concurrency, load(WorkerSettings, {}, {}).processes) == (cpus, cpus)
    assert load(WorkerSettings, {"concurrency": "1"}, {}).processes == 1
    assert load(WorkerSettings, {"concurrency": "auto", "processes": str(cpus + 3)}, {}).concurrency == cpus + 3
    assert load(WorkerSettings, {"concurrency": "1000"}, {}).processes == cpus
    with pytest.raises(InvalidInput, match="each process needs at least one slot"):
        load(WorkerSettings, {"concurrency": "2", "processes": "4"}, {})


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("1024", 1024)])
def test_sizes(text: str, size: int) -> None:
    assert load(WorkerSettings, {"max_memory": text}, {}).max_memory == size


def test_secrets_stay_secret(tmp_path: Path) -> None:
    # Given secrets from a file and in a URL
    (tmp_path / "keys").write_text("k-one,k-two\n")
    environ = {"GOTASK_API_KEYS_FILE": str(tmp_path / "keys"), "GOTASK_STORAGE": "redis://me:hunter2@h"}
    environ["GOTASK_REDIS_ADDR"] = "me:hunter2@h:6379"
    held = load(ServerSettings, {}, environ)
    # Then they arrive, and do not show
    assert held.api_keys == ("k-one", "k-two")
    assert "hunter2" not in repr(held)
    assert "redis_addr=me:***@h:6379" in repr(held)
    assert "k-one" not in repr(held)
    with pytest.raises(InvalidInput) as caught:
        load(ServerSettings, {}, {"GOTASK_API_KEYS_FILE": "/nowhere/keys"})
    assert str(caught.value) == "GOTASK_API_KEYS_FILE names /nowhere/keys, which cannot be read: No such file or directory."


@pytest.mark.parametrize(
    "argv",
    [["-http-port=81"], ["-http-port", "81"], ["--http-port=81"], ["--http-port", "81"]],
    ids=lambda argv: " ".join(argv),
)
def test_both_spellings(argv: list[str]) -> None:
    args = gotask.build().parse_args(["config", "show", *argv, "-c4", "-Q", "a,b", "--burst", "-l", "debug"])
    assert flags.given(args) == {"http_port": "81", "concurrency": "4", "queues": "a,b", "burst": "true", "log_level": "debug"}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["jbo"], "gotask: There is no command jbo; did you mean job? Try: gotask --help\n"),
        (["job", "lst"], "gotask job: There is no command lst; did you mean list? Try: gotask job --help\n"),
        (
            ["up", "--storag", "x"],
            "gotask up: There is no flag --storag; did you mean --storage? Try: gotask up --help\n",
        ),
        (
            ["up", "-http-prt=5"],
            "gotask up: There is no flag -http-prt; did you mean -http-port? Try: gotask up --help\n",
        ),
        (
            ["up", "-concurency=4"],
            "gotask up: There is no flag -concurency; did you mean -concurrency? Try: gotask up --help\n",
        ),
        (["job", "show"], "gotask job show: the following arguments are required: ID. Try: gotask job show --help\n"),
        (["up", "-http-port"], "gotask up: -http-port: expected one argument. Try: gotask up --help\n"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gotask.build().parse_args(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize(
    ("room", "shown", "reason"),
    [
        (200, "id type queue status created reason", 40),
        (80, "id type queue status created reason", 23),
        (50, "id type status reason", 13),
    ],
)
def test_a_narrow_terminal_gets_fewer_columns(room: int, shown: str, reason: int) -> None:
    columns, widths = ["id", "type", "queue", "status", "created", "reason"], [20, 4, 7, 7, 9, 40]
    found = output.fitting(columns, widths, ("created", "queue"), "reason", room)
    assert ([columns[number] for number in found], widths[-1]) == (shown.split(), reason)


def test_every_command_teaches_by_example() -> None:
    from gotask.cli import reference

    for parser in reference.walk(gotask.build()):
        assert "example" in parser.format_help() or "first steps" in parser.format_help(), parser.prog


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://me:se/cr@et@h/0", "redis://me:***@h/0"),
        ("at redis://:secret@h:1,k:2/0?x=1.", "at redis://:***@h:1,k:2/0?x=1."),
        ("redis+sentinel://h:26379/m?sentinel_password=secret&x=1", "redis+sentinel://h:26379/m?sentinel_password=***&x=1"),
        ("redis://h:6379/0?password=a@b", "redis://h:6379/0?password=***"),
        ("see http://localhost:8080/a, or mail a@b", "see http://localhost:8080/a, or mail a@b"),
    ],
)
def test_passwords_in_urls_do_not_come_out(text: str, shown: str) -> None:
    assert log.scrub(text) == shown


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_log_line_cannot_be_forged(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Given a name with a newline and terminal escapes, and a URL with a password
    logger = log.configure("info", format)  # type: ignore[arg-type]  # a parametrised literal
    # When they are logged
    logger.info("job %s at %s", "x\n2026 ERROR forged\x1b[2J\u202e", "postgres://me:hunter2@h/db", extra={"queue": "a\rb"})
    # Then it is one line, nothing in it drives a terminal, and the password is gone
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", err)
    assert "hunter2" not in err
    if format == "json":
        assert msgspec.json.decode(err)["queue"] == "a\rb"


def test_the_root_logger_is_left_alone() -> None:
    import logging

    before = list(logging.getLogger().handlers), logging.getLogger().level
    logger = log.configure("debug")
    log.configure("debug")
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before
    assert len([one for one in logger.handlers if isinstance(one.formatter, log.TextFormatter)]) == 1
