"""The set-up script, without installing anything: what it decides, says and leaves behind."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from infra.stack.probes import wait_until
from infra.stack.settings import default_state_dir
from tests.fixtures.services import CHECKOUT

SCRIPT = CHECKOUT / "infra" / "stack" / "install.sh"


def shell(text: str, root: Path = CHECKOUT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run some lines after the set-up script was read, as `./giovang` does."""
    return subprocess.run(
        ["sh", "-euc", f'root="{root}"\n. "{SCRIPT}"\n{text}'],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("words", [["status"], ["logs"], ["doctor"], ["--help"], ["up", "--help"]])
def test_looking_installs_nothing(tmp_path: Path, words: list[str]) -> None:
    state = tmp_path / "state"
    answer = subprocess.run(
        [CHECKOUT / "giovang", *words],
        env={"PATH": os.environ["PATH"], "GIOVANG_STACK_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "./giovang up" in answer.stderr or "Usage: ./giovang" in answer.stdout
    assert not state.exists()


def test_the_script_and_the_command_line_agree_on_the_state_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed" / "giovang"
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    for checkout in (CHECKOUT, closed):
        answer = shell('find_state_folder; echo "$state"', root=checkout)
        assert answer.stdout.strip() == str(default_state_dir(checkout)), answer.stderr
    moved = shell('cd /usr; find_state_folder; echo "$state"', GIOVANG_STACK_STATE_DIR="share/x")
    assert moved.stdout.strip() == "/usr/share/x"


def test_an_environment_of_another_release_is_named_and_looking_goes_on(tmp_path: Path) -> None:
    venv = tmp_path / "state" / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text('#!/bin/sh\necho "went on: $*"\n')
    (venv / "bin" / "python").chmod(0o755)
    state = str(tmp_path / "state")
    marks = f'state={state}; read_environment_marks; echo "$venv_mark"; echo "$project_mark"'
    complete, project = shell(marks).stdout.splitlines()
    (venv / ".complete").write_text(complete)
    for mark, says in ((project, False), (f"{project}-of-another-place", True)):
        (venv / ".project").write_text(mark)
        answer = shell("giovang_main status --json", GIOVANG_STACK_STATE_DIR=state)
        assert answer.stdout == "went on: -m infra.stack status --json\n", answer.stderr
        assert ("environment is of another release; ./giovang up" in answer.stderr) is says


def test_missing_packages_are_named_by_purpose(tmp_path: Path) -> None:
    packages = tmp_path / "infra" / "stack" / "packages"
    packages.parent.mkdir(parents=True)
    packages.write_text("12 run libc6\n12 run giovang-none\n12 test giovang-nil\n13 run other\n")
    answer = shell("release=12; missing_packages run; echo; missing_packages test", root=tmp_path)
    assert [line.strip() for line in answer.stdout.splitlines()] == ["giovang-none", "giovang-nil"]


def test_a_full_disk_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    answer = shell(f"setup_disk_mb=999999999; state={tmp_path}; check_disk; echo went on")
    assert answer.returncode == 1
    assert f"are free for {tmp_path}; 999999999 MB are needed" in answer.stderr
    assert "went on" not in answer.stdout


def test_a_step_that_fails_shows_its_end_and_names_the_log(tmp_path: Path) -> None:
    log = tmp_path / "setup.log"
    answer = shell(
        "broken() { echo 'E: Failed to fetch the index'; return 7; }\n"
        f"log={log}; step 'package lists' broken; echo went on"
    )
    assert answer.returncode == 1
    assert "    E: Failed to fetch the index" in answer.stderr
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("giovang: package lists failed: the package source configured on this")
    assert last.endswith(f"the whole output: {log}")
    assert "went on" not in answer.stdout


def test_an_interrupted_step_leaves_no_process(tmp_path: Path) -> None:
    family = tmp_path / "family"
    text = f"deep() {{ sh -c 'echo $$ >{family}; sleep 300; true'; }}\nlog=/dev/null; step x deep"
    script = subprocess.Popen(
        ["sh", "-euc", f'root="{CHECKOUT}"\n. "{SCRIPT}"\n{text}'],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: family.exists() and family.read_text() != "", what="step", timeout_s=60)
    inner = psutil.Process(int(family.read_text()))
    script.send_signal(signal.SIGTERM)
    _, said = script.communicate(timeout=60)
    assert script.returncode == 130
    assert "Interrupted; the next run goes on from here." in said
    wait_until(lambda: not inner.is_running(), what="the end of the step", timeout_s=60)


def test_another_distribution_is_refused_in_one_sentence(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('ID=ubuntu\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu"\n')
    body = SCRIPT.read_text().replace("/etc/os-release", str(release))
    answer = subprocess.run(
        ["sh", "-euc", f"{body}\nread_release"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stderr == (
        "giovang: Giovang's set-up knows Debian 12 and 13, and this is Ubuntu\n"
    )


def test_the_new_cluster_switch_is_off_only_while_installing(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    drop_in = tmp_path / "createcluster.d" / "giovang-setup.conf"
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "apt-get").write_text(f"#!/bin/sh\ncat {drop_in} >{seen}\necho $@ >>{seen}\n")
    (fake / "apt-get").chmod(0o755)
    body = SCRIPT.read_text().replace(
        "/etc/postgresql-common/createcluster.d", str(tmp_path / "createcluster.d")
    )
    answer = subprocess.run(
        ["sh", "-euc", f"{body}\nsudo=; packages='postgresql-15 redis-tools'; apt_install"],
        env={"PATH": f"{fake}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    first, second = seen.read_text().splitlines()
    assert first == "create_main_cluster = false"
    assert second.endswith("--no-install-recommends install postgresql-15 redis-tools")
    assert not drop_in.parent.exists()
