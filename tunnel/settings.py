"""Settings: one table of them, and the one place that resolves them.

A setting comes from a flag (or an argument of the library), else the environment, else config.toml in PTUNNEL_HOME, else its
default here.  A field of `Settings` with its `Row` is all that a new one needs: the flags of the commands, --help, the manual
page, the library's arguments that are checked, and README's table follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, TypedDict, get_args, get_origin, get_type_hints

from tunnel.errors import ConfigurationError
from tunnel.page.place import read_place
from tunnel.server_spec import (
    DEFAULT_METRICS_PORT,
    DEFAULT_TLS_PORT,
    DHT_ENTRY,
    TlsOptions,
    parse_server,
    read_fingerprint,
    read_tls_port,
    split_entry,
    split_local_place,
    with_tls_options,
)
from tunnel.state.config_file import ConfigFile

PathPolicy: TypeAlias = Literal["auto", "direct", "relay"]
Repeat: TypeAlias = Literal["auto", "off", "always"]
Switch: TypeAlias = Literal["on", "off"]
Kind: TypeAlias = Literal["tls", "network", "peer"]  # commands that ask a server; that meet peers; that introduce us to a new one
MAX_NAME: Final = 64  # characters of a name by which we introduce ourselves


def is_text(word: str) -> bool:
    """Whether a word of a command line or the environment is UTF-8.  Python keeps other bytes as surrogates (PEP 383)."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _check_token(text: str, place: str) -> None:
    if any(character.isspace() or character in "\"'" for character in text):
        raise ConfigurationError(f"{place}: a token has no blanks or quotes in it: is there more than the token?")
    if not is_text(text):
        raise ConfigurationError(f"{place} is not UTF-8 text: copy the token once more.")


def _check_name(text: str, place: str) -> None:
    if not (0 < len(text) <= MAX_NAME and text.isprintable()):
        raise ConfigurationError(f"{place} needs 1 to {MAX_NAME} printable characters.")


def _check_metrics(text: str, place: str) -> None:
    split_local_place(text, place, DEFAULT_METRICS_PORT)


def _check_server(text: str, place: str) -> None:
    if text.lower() != "none":
        parse_server(text, place)


class Row(NamedTuple):
    """A setting: its names and its check.  The type of its field is checked besides."""

    meaning: str  # in the tables of the documents
    kind: Kind | None = None  # which commands have a flag for it; None: none has
    help: str = ""  # of the flag
    metavar: str | None = None
    flag: str | None = None  # unless it is called as the field is
    flag_value: str | None = None  # what the flag stands for where it takes no value
    variable: str | None = None  # of the environment
    is_in_file: bool = True  # may stand in config.toml
    is_secret: bool = False  # shown nowhere, and inherited by no program that is started
    keeps_blanks: bool = False  # those around it belong to the value, as in the name of a folder
    rule: str = ""  # completes a sentence that begins with where it was said
    is_list: bool = False  # config.toml may say it as a list of texts
    check: Callable[[str, str], object] | None = None  # (value, place): raises ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The resolved settings of a command or a verb of the library."""

    server: Annotated[
        str | None,
        Row(
            meaning="rendezvous servers, HOST[:PORT] with commas between; dht (the Mainline DHT) too; or none",
            kind="network",
            metavar="HOST[:PORT]",
            help="The rendezvous server, 'dht' (without one), 'HOST,dht', 'none'. "
            "Also PTUNNEL_SERVER, config.toml, or last time's.",
            variable="PTUNNEL_SERVER",
            is_list=True,
            check=_check_server,
        ),
    ] = None
    code: Annotated[
        str | None,
        Row(
            meaning="a code that another computer showed, so that it need not be on a command line",
            variable="PTUNNEL_CODE",
            is_in_file=False,
            is_secret=True,
        ),
    ] = None
    name: Annotated[
        str | None,
        Row(
            meaning="how this machine introduces itself to a new peer; its host name unless said",
            kind="peer",
            metavar="NAME",
            help="How to introduce this machine to a new peer; its host name unless said.",
            check=_check_name,
        ),
    ] = None
    path: Annotated[
        PathPolicy,
        Row(
            meaning="which paths may be used: auto, direct or relay",
            kind="network",
            help="Which paths may be used; the stricter of both sides wins. With relay the other side never learns this address.",
            rule="is auto, direct or relay",
        ),
    ] = "auto"
    repeat: Annotated[
        Repeat,
        Row(
            meaning="send small datagrams twice: auto (while the path loses some), off or always",
            kind="network",
            help="Send small datagrams (games, voice) twice, so that fewer are lost: while the path loses some, or as said.",
            rule="is auto, off or always",
        ),
    ] = "auto"
    repair: Annotated[
        Switch,
        Row(
            meaning="send lost packets of TCP in rooms again, on paths that lose some: on or off",
            kind="network",
            flag="--no-repair",
            flag_value="off",
            help="Do not send lost packets of TCP in rooms again, on paths that lose some.",
            rule="is on or off",
        ),
    ] = "on"
    access_token: Annotated[
        str | None,
        Row(
            meaning="what a server with --access asks for",
            variable="PTUNNEL_ACCESS_TOKEN",
            is_secret=True,
            check=_check_token,
        ),
    ] = None
    portmap: Annotated[
        Switch,
        Row(
            meaning="ask the router to forward a port to this program: on or off",
            kind="network",
            flag="--no-portmap",
            flag_value="off",
            help="Do not ask the router to forward a port to this program.",
            variable="PTUNNEL_PORTMAP",
            rule="is on or off",
        ),
    ] = "on"
    tls_port: Annotated[
        str | None,
        Row(
            meaning="TCP port of the server for networks that block UDP, or off",
            kind="tls",
            metavar="PORT|off",
            help=f"TCP port of the server for networks that block UDP; {DEFAULT_TLS_PORT} unless said.",
            variable="PTUNNEL_TLS_PORT",
            check=read_tls_port,
        ),
    ] = None
    tls_fingerprint: Annotated[
        str | None,
        Row(
            meaning="SHA-256 of the server's certificate; without it public authorities vouch for its name",
            kind="tls",
            metavar="SHA256",
            help="The server's certificate, as 'ptunnel serve' prints it; without it public authorities vouch for its name.",
            variable="PTUNNEL_TLS_FINGERPRINT",
            check=read_fingerprint,
        ),
    ] = None
    fleet: Annotated[
        str | None,
        Row(
            meaning="the store that servers of a fleet share: redis://HOST/ and others of ptunnel serve --fleet",
            variable="PTUNNEL_FLEET",
            is_secret=True,
        ),
    ] = None
    fleet_key: Annotated[
        str | None,
        Row(
            meaning="the secret that servers of a fleet share: 32 characters or more",
            variable="PTUNNEL_FLEET_KEY",
            is_secret=True,
        ),
    ] = None
    dht_bootstrap: Annotated[
        str,
        Row(
            meaning="nodes by which we come into the DHT, HOST:PORT with commas between, or a list of them",
            variable="PTUNNEL_DHT_BOOTSTRAP",
            is_list=True,
            check=split_entry,
        ),
    ] = DHT_ENTRY
    metrics: Annotated[
        str | None,
        Row(
            meaning="where ptunnel up gives figures to Prometheus: 127.0.0.1:9464, or a port of this machine",
            check=_check_metrics,
        ),
    ] = None
    qlog: Annotated[
        str | None,
        Row(
            meaning="a folder for a trace of each connection",
            kind="network",
            metavar="DIR",
            help="Write a trace of each connection into this folder (qlog, for qvis and others).",
            variable="PTUNNEL_QLOG",
            keeps_blanks=True,
        ),
    ] = None
    page: Annotated[
        str | None,
        Row(
            meaning="where ptunnel up shows a page to browsers of this machine: ADDRESS:PORT or unix:/PATH",
            check=read_place,
        ),
    ] = None
    is_server_given: bool = False  # by a flag: goes before the one that a peer is remembered with
    is_server_refused: bool = False  # "none": one of one's own, for this network only

    def __repr__(self) -> str:
        shown = {key: getattr(self, key) for key in self.__slots__ if key not in TABLE or not TABLE[key].is_secret}
        return f"Settings({', '.join(f'{key}={value!r}' for key, value in shown.items())})"

    @property
    def tls(self) -> TlsOptions:
        """For servers whose word says nothing else."""
        port = DEFAULT_TLS_PORT if self.tls_port is None else read_tls_port(self.tls_port)
        return TlsOptions(port, None if self.tls_fingerprint is None else read_fingerprint(self.tls_fingerprint))

    @property
    def wants_port_mapping(self) -> bool:
        return self.portmap == "on"

    @property
    def access_token_bytes(self) -> bytes:
        return (self.access_token or "").encode()

    @property
    def given_server(self) -> str | None:
        return self.server if self.is_server_given else None


class Given(TypedDict, total=False):
    """Settings given to a verb of the library; one left out or None is as configured."""

    server: str | None
    path: PathPolicy | None
    repeat: Repeat | None
    portmap: bool | None
    qlog: Any  # a path
    tls: TlsOptions | None


class GivenPeer(Given, total=False):
    """Settings given by a caller that introduces this machine to new peers."""

    name: str | None


def _fields() -> dict[str, tuple[Any, Row]]:
    found = {}
    for key, hint in get_type_hints(Settings, include_extras=True).items():
        row = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Row)), None)
        if row is not None:
            found[key] = (hint.__origin__, row)
    return found


_FIELDS: Final = _fields()
#: Setting -> its row.
TABLE: Final[Mapping[str, Row]] = {key: row for key, (_type, row) in _FIELDS.items()}
#: Lists of tables of config.toml that are no settings: `ptunnel up` reads them (tunnel.up.config).
TABLES_IN_FILE: Final = ("expose", "forward", "room")
SERVE_TABLE: Final = "serve"  # [serve]: limits of a server
_taken: dict[str, str] = {}  # secrets out of the environment, by variable


def flag_of(key: str) -> str | None:
    """As it stands on a command line; None where no command has it."""
    row = TABLE[key]
    return None if row.kind is None else row.flag or "--" + key.replace("_", "-")


def choices_of(key: str) -> tuple[str, ...]:
    """The words that a setting may be; empty where it is free text."""
    kind = _FIELDS[key][0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def take_secrets(environ: MutableMapping[str, str]) -> None:
    """For a program that begins: what is secret leaves the environment, so that no child inherits it; `load` knows it."""
    for row in TABLE.values():
        if row.is_secret and row.variable is not None and (value := environ.pop(row.variable, None)):
            _taken[row.variable] = value


def load(
    file: Mapping[str, Any],
    environ: Mapping[str, str],
    flags: Mapping[str, str | None] | None = None,
    *,
    prefix: str = "--",
    tls: TlsOptions | None = None,
) -> Settings:
    """Resolve the settings: the command line and the library both ask here, and hand on what comes out.

    `prefix` says how a flag is called in sentences: "--" on a command line, "" as an argument of the library.  `tls` goes before
    everything that is said elsewhere about TLS.  Raises ConfigurationError, naming where the bad value stands.
    """
    flags = flags or {}
    said: dict[str, str] = {}
    places: dict[str, str] = {}
    config = file if isinstance(file, ConfigFile) else ConfigFile(file)
    for key, value in config.items():
        if key in TABLES_IN_FILE or key == SERVE_TABLE:
            continue
        places[key] = f"{config.place(key)} {key}"
        if key not in TABLE or not TABLE[key].is_in_file:
            known = ", ".join(sorted(key for key, row in TABLE.items() if row.is_in_file))
            raise ConfigurationError(f"{config.place(key)} unknown setting {key[:40]!r}: known are {known}.")
        if TABLE[key].is_list and isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = ",".join(value)
        if not isinstance(value, str):
            raise ConfigurationError(f'{places[key]} must be text in quotes, as in {key} = "...".')
        said[key] = value
    for key, row in TABLE.items():
        if row.variable is not None and (value := environ.get(row.variable) or _taken.get(row.variable)):
            said[key], places[key] = value, row.variable
        if (flag := flags.get(key)) is not None:
            said[key], places[key] = flag, prefix + (key.replace("_", "-") if prefix else key)
    checked: dict[str, Any] = {key: _check(key, value, places[key]) for key, value in said.items()}
    if tls is not None:
        checked["tls_port"], checked["tls_fingerprint"] = "off" if tls.port is None else str(tls.port), tls.fingerprint
    settings = Settings(**checked, is_server_given=flags.get("server") is not None)
    if settings.server is None:
        return settings
    if settings.server.lower() == "none":
        return replace(settings, server=None, is_server_given=False, is_server_refused=True)
    return replace(settings, server=with_tls_options(settings.server, settings.tls, places["server"]))


def _check(key: str, value: str, place: str) -> Any:
    """The value as its field takes it.  Raises ConfigurationError."""
    import msgspec

    kind, row = _FIELDS[key]
    if not row.keeps_blanks:
        value = value.strip()
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ConfigurationError(f"{place} {row.rule}, not {value[:40]!r}.") from None
    if row.check is not None:
        row.check(value, place)
    return value


def load_given(file: Mapping[str, Any], environ: Mapping[str, str], given: Given | GivenPeer) -> Settings:
    """Resolve what the caller of a verb of the library has said.  Raises ConfigurationError, and TypeError for an unknown key."""
    said: dict[str, Any] = {**given}
    tls = said.pop("tls", None)
    if unknown := set(said) - set(TABLE):
        raise TypeError(f"unexpected arguments: {', '.join(sorted(unknown))}")
    if (portmap := said.get("portmap")) is not None:
        said["portmap"] = "on" if portmap else "off"
    flags = {key: str(value) for key, value in said.items() if value is not None and value != ""}
    return load(file, environ, flags, prefix="", tls=tls)
