"""The house rules that a machine can hold: rooms, names, sizes, and files that tell the truth."""

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("api", "ingest", "streams", "dashboards", "infra")
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "api",
    "dashboards",
    "dbt",
    "docs",
    "giovang",
    "infra",
    "ingest",
    "pyproject.toml",
    "requirements.txt",
    "streams",
    "tests",
}
LONGEST_FILE_LINES = 500
LONGEST_FUNCTION_LINES = 90


def tracked_files() -> list[Path]:
    """Return what git tracks or would track, as paths relative to the root."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [Path(name) for name in listing.split("\0") if name and (ROOT / name).is_file()]


def python_files() -> Iterator[Path]:
    for path in tracked_files():
        if path.suffix == ".py" and path.parts[0] in {*ROOMS, "tests"}:
            yield path


def test_the_top_level_is_the_house_and_nothing_else() -> None:
    assert {path.parts[0] for path in tracked_files()} == TOP_LEVEL


def test_dbt_folder_is_never_a_package() -> None:
    # With the checkout first on sys.path a package here would hide dbt-core.
    assert not (ROOT / "dbt" / "__init__.py").exists()


@pytest.mark.parametrize("name", ["nats", "faust", "redis", "streamlit", "alembic"])
def test_no_module_shadows_a_library(name: str) -> None:
    offenders = [path for path in python_files() if path.stem == name and len(path.parts) <= 2]
    assert offenders == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path)
        for path in python_files()
        if path.parts[0] in ROOMS
        and "versions" not in path.parts
        and (ROOT / path).read_text().strip()
        and not ast.get_docstring(ast.parse((ROOT / path).read_text()))
    ]
    assert silent == []


def test_files_and_functions_stay_readable() -> None:
    long_ones = []
    for path in python_files():
        text = (ROOT / path).read_text()
        if text.count("\n") > LONGEST_FILE_LINES:
            long_ones.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION_LINES:
                    long_ones.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert long_ones == []


def test_contracts_do_no_input_or_output() -> None:
    forbidden = {"asyncio", "httpx", "nats", "os", "psycopg", "redis", "socket", "sqlalchemy"}
    for room in ("api", "ingest", "streams"):
        tree = ast.parse((ROOT / room / "contract.py").read_text())
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not imported & forbidden, f"{room}/contract.py imports {imported & forbidden}"


def test_pinned_requirements_have_hashes_and_name_no_registry() -> None:
    text = (ROOT / "requirements.txt").read_text()
    pins = re.findall(r"^[a-z0-9][\w.\-\[\]]*==", text, flags=re.MULTILINE)
    assert len(pins) > 100
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text
    assert "index-url" not in text


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    pinned = (ROOT / "requirements.txt").read_text()
    for requirement in wanted:
        name = re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0].lower()
        assert re.search(rf"^{re.escape(name)}==", pinned, flags=re.MULTILINE), name


def test_package_locks_record_no_download_address() -> None:
    for path in tracked_files():
        if path.name == "package-lock.json":
            packages = json.loads((ROOT / path).read_text())["packages"]
            assert not [name for name, entry in packages.items() if "resolved" in entry], path


def test_no_file_names_a_place_on_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])(/work/|/tmp/scratch|/home/\w+/|/root/)")
    offenders = [
        f"{path}:{number}"
        for path in tracked_files()
        if path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".sql", ".sh", ""}
        and path != Path(__file__).relative_to(ROOT)
        for number, line in enumerate((ROOT / path).read_text(errors="ignore").splitlines(), 1)
        if pattern.search(line)
    ]
    assert offenders == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_command_that_a_page_shows_exists(page: str) -> None:
    shown = set(re.findall(r"^\./giovang ([a-z]+)", (ROOT / page).read_text(), flags=re.MULTILINE))
    assert shown
    import typer.main  # noqa: PLC0415

    from infra.stack.cli import app  # noqa: PLC0415

    known = set(typer.main.get_group(app).commands)
    assert shown <= known


@pytest.mark.parametrize(
    "page",
    [path for path in tracked_files() if path.suffix == ".md"],
    ids=str,
)
def test_links_between_our_pages_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (ROOT / page.parent / target).exists(), f"{page} -> {target}"
