"""The machine's own package sources, and the same mirror's sources of another release.

Reads both forms apt knows, deb822 (`.sources`) and one-line (`.list`), so that no mirror's address
ever stands in this project. A machine whose sources name no Debian archive gives NoMirrorError.
"""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

APT_TIMEOUT_S = 30


class NoMirrorError(Exception):
    """The machine's apt configuration names no usable Debian mirror."""


@dataclass(frozen=True, slots=True)
class Source:
    """One archive of one release, as the machine configured it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str | None = None

    def for_release(self, suite: str) -> str:
        """The deb822 text that fetches source packages of `suite` from the same mirror."""
        # Without Signed-By apt trusts its own key ring, which holds Debian's keys as well.
        signed = f"Signed-By: {self.signed_by}\n" if self.signed_by else ""
        return f"Types: deb-src\nURIs: {self.uri}\nSuites: {suite}\nComponents: main\n{signed}"


def mirror_of(release: str) -> Source:
    """Return the machine's source of `release`'s main archive; NoMirrorError if there is none."""
    return choose(read_all(configured_files()), release)


def choose(sources: Iterable[Source], release: str) -> Source:
    """Pick the source that carries the main component of `release` itself."""
    for source in sources:
        if source.suite == release and "main" in source.components:
            return source
    message = f"apt's sources name no archive of Debian {release!r} with component main"
    raise NoMirrorError(message)


def configured_files() -> list[Path]:
    """Return apt's source files, where apt itself says they are."""
    query = ["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f"]
    answer = subprocess.run(
        [*query, "PARTS", "Dir::Etc::sourceparts/d"],
        check=True,
        capture_output=True,
        text=True,
        timeout=APT_TIMEOUT_S,
    ).stdout
    named = dict(re.findall(r"^(LIST|PARTS)='([^']*)'", answer, flags=re.MULTILINE))
    parts = Path(named.get("PARTS", "/etc/apt/sources.list.d"))
    main = Path(named.get("LIST", "/etc/apt/sources.list"))
    found = [main] if main.is_file() else []
    if parts.is_dir():
        found += sorted(f for f in parts.iterdir() if f.suffix in {".list", ".sources"})
    return found


def read_all(files: Iterable[Path]) -> list[Source]:
    """Return every enabled binary source of the files, in order."""
    sources: list[Source] = []
    for file in files:
        parse = parse_deb822 if file.suffix == ".sources" else parse_one_line
        sources += parse(file.read_text(errors="replace"))
    return sources


def parse_deb822(text: str) -> list[Source]:
    """Read stanzas of `Key: value` lines; a line that begins with a blank goes on with a value."""
    sources: list[Source] = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _fields(stanza)
        types = fields.get("types", "").split()
        if "deb" not in types or fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        signed_by = fields.get("signed-by")
        # A key written out in the file itself cannot be handed on by name.
        usable = signed_by if signed_by and "BEGIN PGP" not in signed_by else None
        sources += [
            Source(uri, suite, tuple(fields.get("components", "").split()), usable)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return sources


def parse_one_line(text: str) -> list[Source]:
    """Read `deb [options] uri suite components…` lines."""
    sources: list[Source] = []
    for line in text.splitlines():
        match = re.match(r"^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line)
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        given = dict(word.partition("=")[::2] for word in (options or "").split())
        sources.append(Source(uri, suite, tuple(components.split()), given.get("signed-by")))
    return sources


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    last = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in {" ", "\t"} and last:
            fields[last] += "\n" + line.strip()
        elif ":" in line:
            last, _, value = line.partition(":")
            last = last.strip().lower()
            fields[last] = value.strip()
    return fields
