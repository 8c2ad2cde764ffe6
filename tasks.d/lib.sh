# shellcheck shell=sh
# The words of a task. A task in POSIX sh begins with
#
#     . "${0%/*}/lib.sh"
#
# which also sets `-eu`. README.md beside this file says what a task is.
#
# Exit code 2 halts the host and 3 ends `runner`, and many programs return 2 on an error of their
# own (grep, ls, diff, tar; sh itself on a syntax error). So this file is the only place that exits
# with them, by `halt` and `stop`; from anywhere else they become 1, which is tried again.

set -eu

lib_meant=
lib_at_end=
lib_name=${RUNNER_TASK:-${0##*/}}

lib_on_exit() {
    lib_code=$?
    trap - EXIT
    eval "$lib_at_end"
    case $lib_meant:$lib_code in
    halt:2 | stop:3) exit "$lib_code" ;;
    *:2 | *:3)
        echo "$lib_name: something ended with $lib_code by accident: taken as a failure" >&2
        exit 1
        ;;
    *) exit "$lib_code" ;;
    esac
}
trap lib_on_exit EXIT

# at_end COMMAND: has COMMAND run when the task ends by itself, whatever its exit code.
at_end() {
    lib_at_end="$lib_at_end
$1"
}

# say WORDS: one line of what is going on.
say() {
    printf '%s\n' "$*"
}

# skip WHY: nothing to do here; the task is done and well.
skip() {
    say "skipped: $*"
    exit 0
}

# fail WHY: the attempt failed and is tried again.
fail() {
    printf '%s: %s\n' "$lib_name" "$*" >&2
    exit 1
}

# halt WHY: the host must be halted. Only where `[tasks.NAME] may_halt = true`; elsewhere a failure.
# Call it from the task itself: from within $(…) or (…) it is a failure.
halt() {
    printf '%s: halt: %s\n' "$lib_name" "$*" >&2
    lib_meant=halt
    exit 2
}

# stop WHY: `runner` must end, the host stays up. Not from within $(…) or (…).
stop() {
    printf '%s: stop: %s\n' "$lib_name" "$*" >&2
    lib_meant=stop
    exit 3
}

# runner_verb VERB [ARGUMENT…]: this host's `runner`, with this host's configuration.
runner_verb() {
    # shellcheck disable=SC2086 # a program with its arguments
    ${RUNNER_CONFIG_CMD:?is not set: this is a task of \`runner\`, run it by \`runner run --runs 1\`} "$@"
}

# configured SECTION.KEY: whether there is such a key. An empty value, or a configuration that cannot
# be read, is a failure of the task: it must not look like one that says nothing.
configured() {
    lib_code=0
    lib_said=$(runner_verb -g "$1" 2>&1 >/dev/null) || lib_code=$?
    case $lib_code:$lib_said in
    0:*) return 0 ;;
    # Code 78 stands for everything that is wrong with a configuration; the words tell.
    78:*"no key \`$1\`"*) return 1 ;;
    *) fail "cannot read \`$1\`: ${lib_said:-exit code $lib_code}" ;;
    esac
}

# require SECTION.KEY: prints its value, a list one item a line. Fails if there is no such key, or
# if it, or one of its items, is empty: emptiness never means "all" and never means a default.
# Assign it before use, `users=$(require a.users)`, so that its failure ends the task.
require() {
    configured "$1" || fail "\`$1\` is not configured: set it in the configuration of \`runner\`"
    # The x keeps $(…) from dropping empty items at the end.
    lib_value=$(runner_verb -g "$1" && echo x) || fail "cannot read \`$1\`"
    lib_value=${lib_value%?x}
    case $(printf '%s\n' "$lib_value" | grep -c '^[[:space:]]*$') in
    0) printf '%s\n' "$lib_value" ;;
    *) fail "\`$1\` is empty, or has an empty item: give it a value, or remove the key" ;;
    esac
}

# config SECTION.KEY DEFAULT: prints its value, or DEFAULT if there is no such key. An empty value
# fails as with `require`.
config() {
    if configured "$1"; then
        require "$1"
    else
        printf '%s\n' "$2"
    fi
}

# report KEY VALUE: tells `runner` a fact, such as `report job.name linux64`. A line break in the
# value could pass for another fact and is a failure.
report() {
    case $2 in
    *'
'*) fail "the value of \`$1\` has a line break" ;;
    esac
    printf '%s=%s\n' "$1" "$2" >>"${RUNNER_OUTPUT:?is not set: this is a task of \`runner\`}"
}

# Runs `cleanslate VERB` with the users and the file of `[cleanslate]`, and further arguments.
cleanslate_verb() {
    lib_verb=$1
    shift
    # `|| exit`: a caller's `if` or `||` switches `-e` off in here.
    lib_users=$(require cleanslate.users) || exit
    while IFS= read -r lib_user; do
        set -- "$@" --user "$lib_user"
    done <<END
$lib_users
END
    if configured cleanslate.file; then
        lib_file=$(require cleanslate.file) || exit
        set -- "$@" --file "$lib_file"
    fi
    cleanslate "$lib_verb" "$@"
}

# Sweeps the host; returns what `cleanslate sweep` returns, and has it report the figures.
sweep() {
    set --
    if configured cleanslate.grace; then
        lib_grace=$(require cleanslate.grace) || exit
        set -- --grace "$lib_grace"
    fi
    cleanslate_verb sweep "$@" --report "${RUNNER_OUTPUT:?is not set: this is a task of \`runner\`}"
}
