# shellcheck shell=sh
# Prepares a Debian 12 or 13 machine for Giovang; sourced by ./giovang with $root set.
#
# Installs the distribution's packages that are missing, the pinned Python environment and the
# private PostgreSQL tree; the last two live in the state folder. Each part is marked when it is
# complete, so an interrupted set-up is done again and a finished one is not looked at twice.
# Every failure ends with one sentence and the name of the log that holds the rest.

setup_disk_mb=4096
# Raised when infra/stack/tree.py begins to make another tree.
tree_recipe=1

giovang_main() {
    umask 022
    find_state_folder
    python=$state/venv/bin/python
    case "${1-}" in
        up | test | demo | dbt | bench | chaos | env)
            case " $* " in
                *" --help "*) ;;
                *) ensure_ready "$1" ;;
            esac
            ;;
    esac
    if ! [ -e "$state/venv/.project" ]; then
        explain_unprepared "${1-}"
    fi
    # Commands that look at a stack, or end it, go on: what runs may be of the former release.
    environment_is_current ||
        say "The Python environment is of another release; ./giovang up renews it."
    cd "$root" || exit
    exec "$python" -m infra.stack "$@"
}

# The same rule as infra/stack/settings.py: the setting, else .giovang in the checkout, else, for
# root in a checkout that other users cannot enter, a folder below /var/lib.
find_state_folder() {
    if [ -n "${GIOVANG_STACK_STATE_DIR-}" ]; then
        case $GIOVANG_STACK_STATE_DIR in
            /*) state=$GIOVANG_STACK_STATE_DIR ;;
            *) state=$PWD/$GIOVANG_STACK_STATE_DIR ;;
        esac
        export GIOVANG_STACK_STATE_DIR="$state"
    elif [ "$(id -u)" -eq 0 ] && ! others_may_enter "$root"; then
        hash=$(printf %s "$root" | sha256sum | cut -c 1-8)
        state=/var/lib/giovang/$(basename "$root")-$hash
    else
        state=$root/.giovang
    fi
}

others_may_enter() {
    folder=$1
    while :; do
        case $(stat -c %A "$folder") in
            *[xt]) ;;
            *) return 1 ;;
        esac
        [ "$folder" = / ] && return 0
        folder=$(dirname "$folder")
    done
}

# Commands that only look at a stack never install anything.
explain_unprepared() {
    case $1 in
        doctor)
            read_release
            say "This machine is not prepared yet; state would live in $state."
            packages=$(missing_packages run build)
            [ -z "$packages" ] || say "missing packages: $packages"
            say "missing: the Python environment and the private PostgreSQL tree"
            say "→ ./giovang up installs all of it and starts Giovang"
            exit 1
            ;;
        status | down | logs | reset)
            say "Nothing is prepared or running here yet; ./giovang up does both."
            [ "$1" = down ] || exit 1
            exit 0
            ;;
        *)
            cat <<'TEXT'
Usage: ./giovang COMMAND

  up       prepare this machine on first use, then start everything (--detach, --no-demo)
  down     stop everything cleanly
  status   show every service (--json)
  logs     show logs ([service] [-f])
  doctor   say what is missing and how to mend it
  reset    remove all data of this stack (asks first)
  test     run lint, types, import rules and all tests
  demo     run the demo against the running stack
  dbt      run dbt against the running stack's warehouse
  capture  how capture stands, backfills, checks (status, backfill, check, provision)
  streams  how the processors stand (status)
  deadletter  events that could not be processed (list, show, retry, discard)
  audit    prove the audit trail (verify)
  bench    measure (NAME [--short] [--json])
  chaos    kill what carries events, under load (capture or streams [--kills N] [--seed N])
  env      the pinned Python environment (env lock)
TEXT
            exit 0
            ;;
    esac
}

ensure_ready() {
    read_release
    purposes=run
    [ "$1" = test ] && purposes='run test'
    is_ready && return 0
    mkdir -p "$state" 2>/dev/null || fail "cannot make the state folder $state"
    [ -w "$state" ] || fail "the state folder $state is not writable by $(id -un)"
    exec 9>>"$state/setup.lock"
    if ! flock -n 9; then
        say "Another set-up of this folder is running; waiting for it."
        flock 9
    fi
    is_ready || prepare
    exec 9>&-
}

# Sets what each part must be marked with to count as complete.
read_marks() {
    read_environment_marks
    version=$(dpkg-query -W -f '${Version}' "postgresql-$major" 2>/dev/null || true)
    tree_mark=$tree_recipe-$version
}

read_environment_marks() {
    interpreter=$(readlink -f /usr/bin/python3 || true)
    venv_mark=$(sha256sum <"$root/requirements.txt" | cut -c 1-16)-${interpreter##*/}
    # The checkout's place and entry points are installed apart, since they change more often.
    project_mark=$(sha256sum <"$root/pyproject.toml" | cut -c 1-16)-$root
}

environment_is_current() {
    read_environment_marks
    [ "$(cat "$state/venv/.complete" 2>/dev/null)" = "$venv_mark" ] &&
        [ "$(cat "$state/venv/.project" 2>/dev/null)" = "$project_mark" ]
}

is_ready() {
    read_marks
    environment_is_current || return 1
    [ "$(cat "$state/postgres/.complete" 2>/dev/null)" = "$tree_mark" ] || return 1
    # shellcheck disable=SC2086 # purposes are words
    [ -z "$(missing_packages $purposes)" ]
}

prepare() {
    log=$state/setup.log
    : >"$log" || fail "cannot write $log"
    say "Preparing this machine; state lives in $state"
    [ "$state" = "$root/.giovang" ] || [ -n "${GIOVANG_STACK_STATE_DIR-}" ] ||
        say "(not in the checkout, which the services' unprivileged user could not enter)"
    tree_is_old=yes
    read_marks
    [ "$(cat "$state/postgres/.complete" 2>/dev/null)" = "$tree_mark" ] && tree_is_old=no
    [ $tree_is_old = no ] || purposes="$purposes build"
    # shellcheck disable=SC2086 # purposes are words
    packages=$(missing_packages $purposes)
    check_disk
    if [ -n "$packages" ]; then
        install_packages
    fi
    read_marks
    if [ "$(cat "$state/venv/.complete" 2>/dev/null)" != "$venv_mark" ]; then
        refuse_while_running
        step "Python environment (pinned, with hashes)" make_environment
        printf %s "$venv_mark" >"$state/venv/.complete"
    fi
    if [ "$(cat "$state/venv/.project" 2>/dev/null)" != "$project_mark" ]; then
        step "the checkout's own packages" install_checkout
        printf %s "$project_mark" >"$state/venv/.project"
    fi
    if [ "$(cat "$state/postgres/.complete" 2>/dev/null)" != "$tree_mark" ]; then
        refuse_while_running
        step "private PostgreSQL $major with TimescaleDB" make_tree
        printf %s "$tree_mark" >"$state/postgres/.complete"
    fi
    say "Prepared."
}

read_release() {
    [ -r /etc/os-release ] || fail "there is no /etc/os-release: Giovang needs Debian 12 or 13"
    release=$(. /etc/os-release && printf '%s %s' "${ID-}" "${VERSION_ID-}")
    name=$(. /etc/os-release && printf %s "${PRETTY_NAME-this system}")
    case $release in
        'debian 12') major=15 ;;
        'debian 13') major=17 ;;
        *) fail "Giovang's set-up knows Debian 12 and 13, and this is $name" ;;
    esac
    release=${release#debian }
}

# Names the packages of the given purposes that are not installed.
missing_packages() {
    wanted=$(awk -v release="$release" -v purposes=" $* " \
        '$1 == release && index(purposes, " " $2 " ") { print $3 }' "$root/infra/stack/packages")
    # shellcheck disable=SC2086 # package names are words
    installed=$(dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' $wanted 2>/dev/null |
        awk '$2 == "ii" || $2 == "hi" { print $1 }') || true
    for package in $wanted; do
        case "
$installed
" in
            *"
$package
"*) ;;
            *) printf '%s' "${separator-}$package" && separator=' ' ;;
        esac
    done
    unset separator
}

check_disk() {
    free=$(df -Pm "$state" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$setup_disk_mb" ] ||
        fail "only $free MB are free for $state; $setup_disk_mb MB are needed"
}

refuse_while_running() {
    lock=$state/run/supervisor.lock
    if [ -e "$lock" ] && ! flock -n -s "$lock" true; then
        fail "the environment must be renewed, and the stack still runs on it: ./giovang down first"
    fi
}

install_packages() {
    if [ "$(id -u)" -eq 0 ]; then
        sudo=
    elif command -v sudo >/dev/null; then
        # Asked for here, once, because the steps below run without a terminal.
        if [ -t 0 ]; then sudo -v; fi
        sudo -n true 2>/dev/null || fail "packages are missing ($packages) and sudo asks for a\
 password: run ./giovang from a terminal, or have root install them"
        sudo='sudo -n'
    else
        fail "packages are missing ($packages), and there is neither root nor sudo: have root run\
 apt-get install --no-install-recommends $packages"
    fi
    step "package lists" apt_update
    step "packages: $packages" apt_install
}

apt_update() {
    $sudo apt-get -q -o DPkg::Lock::Timeout=300 update || return 1
    # A mirror that cannot be reached is only a warning to apt; ask whether we know enough.
    # shellcheck disable=SC2086 # package names are words
    apt-cache show $packages >/dev/null
}

# A new PostgreSQL server package would make a cluster named main and start it on port 5432. For the
# time of this installation the distribution's own switch for that is off.
apt_install() {
    drop_in=/etc/postgresql-common/createcluster.d/giovang-setup.conf
    # shellcheck disable=SC2086 # package names are words
    $sudo sh -c '
        drop_in=$1; shift
        made=
        cleanup() { rm -f "$drop_in"; [ -z "$made" ] || rmdir "$made" 2>/dev/null || true; }
        trap cleanup EXIT
        trap "exit 143" TERM INT HUP
        [ -d "${drop_in%/*}" ] || made=${drop_in%/*}
        mkdir -p "${drop_in%/*}"
        echo "create_main_cluster = false" >"$drop_in"
        DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
            --no-install-recommends install "$@"
    ' setup "$drop_in" $packages
}

make_environment() {
    rm -rf "$state/venv" &&
        /usr/bin/python3 -m venv "$state/venv" &&
        "$python" -m pip install --no-input --disable-pip-version-check --no-deps \
            --require-hashes -r "$root/requirements.txt"
}

install_checkout() {
    "$python" -m pip install --no-input --disable-pip-version-check --no-deps \
        --no-build-isolation --editable "$root"
}

make_tree() {
    (cd "$root" && GIOVANG_STACK_STATE_DIR=$state "$python" -m infra.stack.tree "$major")
}

# step TITLE COMMAND…: run it with its output in the log, show one line with the time it took.
step() {
    title=$1
    shift
    began=$(date +%s)
    printf '\n== %s\n' "$title" >>"$log"
    [ -t 2 ] || printf '  ....  %s\n' "$title" >&2
    # The step keeps the lock open: should a part of it outlive us, the next run waits for its end.
    "$@" >>"$log" 2>&1 </dev/null &
    child=$!
    trap 'end_family "$child"; say "Interrupted; the next run goes on from here."; exit 130' \
        INT TERM HUP
    while kill -0 "$child" 2>/dev/null; do
        [ ! -t 2 ] || printf '\r%5d s  %.70s' "$(($(date +%s) - began))" "$title" >&2
        sleep 0.3
    done
    result=0
    wait "$child" || result=$?
    trap - INT TERM HUP
    [ ! -t 2 ] || printf '\r' >&2
    printf '%5d s  %s\n' "$(($(date +%s) - began))" "$title" >&2
    [ $result -eq 0 ] || explain_failure "$title"
}

# Ends a process and everything it started, children first.
end_family() {
    # shellcheck disable=SC2013 # the file is one line of numbers
    for one in $(cat /proc/"$1"/task/*/children 2>/dev/null); do
        end_family "$one"
    done
    kill "$1" 2>/dev/null || true
}

explain_failure() {
    reason="$1 failed"
    tail -n 80 "$log" | grep -q -i 'no space left on device' && reason="the disk is full"
    tail -n 80 "$log" | grep -q -E \
        'Temporary failure resolving|Could not connect|Failed to fetch|Unable to locate package|Could not resolve|No matching distribution|Connection (refused|timed out)|Network is unreachable' &&
        reason="$1 failed: the package source configured on this machine (apt or pip) cannot be\
 reached or lacks a package"
    tail -n 80 "$log" | grep -q 'THESE PACKAGES DO NOT MATCH THE HASHES' &&
        reason="$1 failed: a downloaded package does not match its pinned hash"
    tail -n 12 "$log" | sed 's/^/    /' >&2
    fail "$reason; the whole output: $log"
}

say() {
    printf '%s\n' "$1" >&2
}

fail() {
    printf 'giovang: %s\n' "$1" >&2
    exit 1
}
