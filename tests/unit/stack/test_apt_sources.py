"""Reading the machine's own package sources, in both of apt's forms."""

import pytest

from infra.stack.apt_sources import NoMirrorError, Source, choose, parse_deb822, parse_one_line

DEB822 = """\
# the base system
Types: deb deb-src
URIs: http://mirror.example/debian
# a comment between fields
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /etc/apt/keys/d.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Enabled: no

Types: deb
URIs: https://other.example/apt
Suites: stable
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb [signed-by=/etc/apt/keys/d.gpg arch=amd64] http://mirror.example/debian bookworm main contrib #b
deb http://mirror.example/debian-security bookworm-security main
deb http://flat.example/ ./
"""


def test_deb822_stanzas() -> None:
    keyring = "/etc/apt/keys/d.gpg"
    components = ("main", "contrib")
    assert parse_deb822(DEB822) == [
        Source("http://mirror.example/debian", "bookworm", components, keyring),
        Source("http://mirror.example/debian", "bookworm-updates", components, keyring),
        Source("https://other.example/apt", "stable", ("main",), None),
    ]


def test_one_line_sources() -> None:
    keyring = "/etc/apt/keys/d.gpg"
    assert parse_one_line(ONE_LINE) == [
        Source("http://mirror.example/debian", "bookworm", ("main", "contrib"), keyring),
        Source("http://mirror.example/debian-security", "bookworm-security", ("main",), None),
        Source("http://flat.example/", "./", (), None),
    ]


@pytest.mark.parametrize("sources", [parse_deb822(DEB822), parse_one_line(ONE_LINE)])
def test_the_same_mirror_gives_another_release(sources: list[Source]) -> None:
    assert choose(sources, "bookworm").for_release("trixie") == (
        "Types: deb-src\n"
        "URIs: http://mirror.example/debian\n"
        "Suites: trixie\n"
        "Components: main\n"
        "Signed-By: /etc/apt/keys/d.gpg\n"
    )


def test_without_a_named_key_apt_uses_its_own() -> None:
    source = Source("http://mirror.example/debian", "bookworm", ("main",))
    assert "Signed-By" not in source.for_release("trixie")


def test_a_machine_without_the_archive_is_told_so() -> None:
    with pytest.raises(NoMirrorError, match="bookworm"):
        choose(parse_one_line("deb http://mirror.example/ubuntu noble main"), "bookworm")
