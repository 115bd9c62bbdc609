"""Games for all test suites: the demo game, games that misbehave, and real ones from Debian's packages.

A game is a dict of path → (content, mode), which `make_zip` packs and `make_bundle` lays out as an unpacked build.
"""

import io
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.debian import unpack_debian

Files = dict[str, tuple[bytes, int]]

DEMO = Path(__file__).parent.parent / "examples" / "demo-game"
EXECUTABLE = "Server.x86_64"


def make_zip(files: Files) -> bytes:
    """A ZIP archive as a Unix tool makes it, execute bits included."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, (content, mode) in files.items():
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def make_bundle(folder: Path, files: Files, executable: str = EXECUTABLE) -> Path:
    """An unpacked build as a node has it: the files, and the link for playflow.json beside the executable."""
    for path, (content, mode) in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        (folder / path).chmod(mode)
    (folder / executable).parent.joinpath("playflow.json").symlink_to("/playflow/playflow.json")
    return folder


def demo() -> Files:
    return {EXECUTABLE: ((DEMO / EXECUTABLE).read_bytes(), 0o755)}


def demo_zip() -> bytes:
    return make_zip(demo())


def script(text: str, interpreter: str = "/bin/sh") -> Files:
    return {EXECUTABLE: (f"#!{interpreter}\n{text}\n".encode(), 0o755)}


def perl(text: str) -> Files:
    return script(f"use strict; use IO::Socket::INET; use IO::Select; $| = 1;\n{text}", "/usr/bin/perl")


_BIND = (
    'my $s = IO::Socket::INET->new(Proto => "udp", LocalAddr => "{host}", LocalPort => {port}) or die "bind: $!\\n";'
)
_ECHO = 'while (1) { my $from = $s->recv(my $p, 2048) // next; $s->send("echo $p", 0, $from) }'


def _port() -> str:
    return "($ENV{PLAYFLOW_PORT_GAME} || 7777)"


def _bind(host: str = "0.0.0.0") -> str:
    return _BIND.replace("{host}", host).replace("{port}", _port())


def slow_boot(seconds: float) -> Files:
    """Opens its port only after `seconds`."""
    return perl(f"print qq(booting\\n); select undef, undef, undef, {seconds}; {_bind()} print qq(ready\\n); {_ECHO}")


def crash(code: int = 3) -> Files:
    """Says something on both streams and ends."""
    return script(f"echo starting; echo 'fatal: no map' >&2; exit {code}")


def fork_bomb() -> Files:
    """Answers on its port, and forks without end."""
    return perl(f"{_bind()} if (!fork) {{ while (1) {{ fork; select undef, undef, undef, 0.01 }} }} {_ECHO}")


def memory_eater() -> Files:
    return perl('print "eating\\n"; my @all; while (1) { push @all, "x" x (8 << 20); }')


def log_writer(lines: int | None = None) -> Files:
    """Answers on its port and writes numbered lines: `lines` of them, or without end."""
    count = "1" if lines is None else f"$n < {lines}"
    return perl(f'{_bind()} my $n = 0; while ({count}) {{ print "line $n\\n"; $n++ }} {_ECHO}')


def disk_filler() -> Files:
    """Fills /tmp, says how that ended, and stays."""
    fill = 'open my $f, ">", "/tmp/fill" or die; while (print {$f} "x" x 65536) {} close $f;'
    return perl(f'{_bind()} {fill} print "full: $!\\n"; print "wrote ", -s "/tmp/fill", "\\n"; {_ECHO}')


def port_that_closes() -> Files:
    """Closes its port when it is told `close`, and opens it again after a second."""
    hear = 'my $from = $s->recv(my $p, 2048) // next; $s->send($p eq "close" ? "closing" : "echo $p", 0, $from)'
    again = 'if ($p eq "close") { close $s; select undef, undef, undef, 1; goto OPEN }'
    return perl(f"OPEN: {_bind()} while (1) {{ {hear}; {again} }}")


_HTTP_GET = r"""
use IO::Socket::UNIX;
sub get {
    my ($path) = @_;
    my $url = $ENV{PLAYFLOW_CONFIG_URL};
    my $c;
    if ($url =~ m{^http\+unix://([^/]+)(/.*)$}) {
        my ($socket, $base) = ($1, $2);
        $socket =~ s/%2F/\//g;
        $c = IO::Socket::UNIX->new(Peer => $socket) or return "refused: $!";
        $url = $base;
    } else {
        my ($host, $port, $base) = $url =~ m{^http://([^:]+):(\d+)(/.*)$};
        $c = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port) or return "refused: $!";
        $url = $base;
    }
    print {$c} "GET $url$path HTTP/1.0\r\n\r\n";
    local $/;
    my $all = <$c>;
    $all =~ s/.*?\r\n\r\n//s;
    return $all;
}
"""


def long_poller() -> Files:
    """Waits for a new config at its node, over and over, and writes each answer to its log; on `ask X` it asks
    once, with X behind the address, and sends what it got.
    """
    ask = "my $from = $s->recv(my $p, 2048) // next; $s->send(get($1), 0, $from) if $p =~ /^ask ?(.*)/s"
    wait = 'my $a = get("?after=$r&timeout=60"); $a =~ s/\\n *//g; print "$a\\n"'
    rest = "select undef, undef, undef, 0.2"
    poll = f'my $r = ""; while (1) {{ {wait}; $r = $1 if $a =~ /"revision":"([0-9a-f]+)"/ or {rest} }}'
    return perl(f"{_HTTP_GET} {_bind()} if (!fork) {{ {poll} }} while (1) {{ {ask} }}")


def busy() -> Files:
    """Answers on its port, while a process that it started uses a whole CPU."""
    return perl(f"{_bind()} if (!fork) {{ while (1) {{ }} }} {_ECHO}")


def deaf() -> Files:
    """Ignores SIGTERM."""
    return perl(f'$SIG{{TERM}} = "IGNORE"; {_bind()} {_ECHO}')


def loopback_only() -> Files:
    return perl(f"{_bind('127.0.0.1')} {_ECHO}")


def never_ready() -> Files:
    return script("echo waiting; exec sleep 3600")


def tcp_listener() -> Files:
    listen = f'IO::Socket::INET->new(LocalAddr => "0.0.0.0", LocalPort => {_port()}, Listen => 5, ReuseAddr => 1)'
    return perl(f'my $s = {listen} or die "listen: $!\\n"; while (1) {{ my $c = $s->accept; print {{$c}} "hi\\n" }}')


def udp_ask(host: str, port: int, payload: bytes, timeout: float = 10.0, tries: int = 20) -> bytes:
    """Send until something comes back; TimeoutError after `timeout` in all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(timeout / tries)
        asker.connect((host, port))
        for _ in range(tries):
            try:
                asker.send(payload)
                return asker.recv(65536)
            except (TimeoutError, ConnectionRefusedError):
                continue
    raise TimeoutError(f"no answer from {host}:{port} within {timeout} s")


# Real games ---------------------------------------------------------------------------------------------------------


def _tree(root: Path, prefix: str) -> Files:
    files: Files = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            files[f"{prefix}/{path.relative_to(root)}"] = (path.read_bytes(), 0o644)
    return files


TEEWORLDS_ARGS = '"sv_port {port:game}" "sv_register 0" "sv_name {name}"'
CUBE2_ARGS = "-j28785 -n{name} -mlocalhost"


def teeworlds() -> Files:
    """Teeworlds 0.7: listens on UDP `sv_port` (8303 if not told)."""
    root = unpack_debian("teeworlds-server", "teeworlds-data")
    data = root / "usr/share/games/teeworlds/data"
    files = {EXECUTABLE: ((root / "usr/games/teeworlds-server").read_bytes(), 0o755)}
    files["storage.cfg"] = (b"add_path $DATADIR\nadd_path $CURRENTDIR\n", 0o644)
    return files | _tree(data / "maps", "data/maps") | _tree(data / "mapres", "data/mapres")


def teeworlds_name(host: str, port: int, timeout: float = 20.0) -> str:
    """The server's name, asked as a game client does: a token first, then the server info."""
    token = b"\x11\x22\x33\x44"
    hello = b"\x04\x00\x00\xff\xff\xff\xff\x05" + token + bytes(508)
    answer = udp_ask(host, port, hello, timeout)
    assert answer[:8] == b"\x04\x00\x00" + token + b"\x05", answer
    info = udp_ask(host, port, b"\x21" + answer[8:12] + token + b"\xff\xff\xff\xffgie3\x05", timeout)
    _, _, body = info.partition(b"inf3\x05")
    return body.split(b"\0")[1].decode()


def cube2() -> Files:
    """Cube 2 Sauerbraten: game on UDP 28785, server info on 28786. Needs LD_LIBRARY_PATH=`.`."""
    root = unpack_debian("cube2-server", "libenet7")
    library = next(path for path in root.rglob("libenet.so.7*") if not path.is_symlink())
    return {
        EXECUTABLE: ((root / "usr/lib/cube2/cube2_server").read_bytes(), 0o755),
        "libenet.so.7": (library.read_bytes(), 0o644),
    }


def cube2_name(host: str, info_port: int, timeout: float = 20.0) -> str:
    """The server's description from its info port."""
    answer = udp_ask(host, info_port, b"\x01\x02\x03", timeout)
    assert answer[:3] == b"\x01\x02\x03", answer
    return answer.rstrip(b"\0").split(b"\0")[-1].decode()


MISBEHAVING: dict[str, Callable[[], Files]] = {
    "fork bomb": fork_bomb,
    "memory eater": memory_eater,
    "endless log": log_writer,
    "disk filler": disk_filler,
    "deaf to SIGTERM": deaf,
}
