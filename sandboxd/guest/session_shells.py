"""The shell programs that carry a session's state from one command to the next.

Theory of operation. There is no shell that lives on between commands: whatever a command does to its shell (`exit`,
`exec`, `set -e`, a kill, a syntax error, a child that keeps its output open), nothing can hang, and each command is a
process like any other. A new shell restores the state that the last command's shell has saved, runs the command, and
saves its own:

    60  the prelude, from here: sources 61, then puts on what holds for this command alone
    61  the state, a shell program that the last command's shell wrote (at first: made here of the environment)
    62  where this command's shell writes the next state; it counts when its last line says that it is whole

All three are memory files, opened by their path so that shells that know single-digit descriptors can. The state is
what the sandbox's programs made it: it is only ever run by a shell inside, and init reads nothing of it but the end.

It is saved after the command and, by a trap, at an `exit` within it. A command that is killed, that `exec`s another
program, or (bash) exits within a function, whose local variables would become global, leaves the state as it was.
Kept by bash: variables with their attributes, functions, aliases, options, traps but EXIT, umask, the working directory
and its stack, positional parameters. By another sh: variables, exports, aliases, options, traps, umask, the working
directory; those shells cannot print their functions. Neither keeps jobs, `$!` or redirections made by `exec`.
"""

from __future__ import annotations

from typing import Final

#: The lowest of the three descriptors; scripts use low ones (9 and 200 are popular for locks) as their own.
FIRST_FD: Final = 60
END_MARK: Final = b"\n#end\n"
CWD_MARK: Final = b"\n#cwd "

#: The save is run by `eval` so that its text is no function and thus no part of the state. Its first lines must change
#: nothing that they are to save; a backslash keeps a user's alias away, `builtin` a user's function.
_BASH_SAVE: Final = r"""_sandboxd_status=$?
[ -n "${FUNCNAME-}" ] || {
\builtin unset -f _sandboxd_set
\builtin printf "_sandboxd_set() {\n:\n"
[ "$SHELLOPTS:$BASHOPTS" = "${_sandboxd_plain-}" ] || { \builtin set +o; \builtin shopt -p; }
\builtin printf "case \$- in *x*) set +x; _sandboxd_command=\"set -x;\$_sandboxd_command\" ;; esac\n"
\builtin trap -p HUP INT QUIT TERM PIPE CHLD TSTP USR1 USR2 ALRM WINCH ERR RETURN DEBUG
\builtin printf "}\n"
\builtin set +aeuxvf; \builtin set +o posix; \builtin trap - DEBUG ERR RETURN; \builtin shopt -u expand_aliases
\builtin hash -r
_sandboxd_at=${_sandboxd_dir-$PWD} _sandboxd_names=${_sandboxd_names-} _sandboxd_old=${_sandboxd_old-}
\builtin unset -v _sandboxd_save _sandboxd_command _sandboxd_plain _sandboxd_dir _sandboxd_stack _sandboxd_lost
\builtin declare -p
\builtin printf "unalias -a\n"; \builtin alias -p
[ -z "$_sandboxd_names" ] || \builtin printf "unset -v %s\n%s\n" "$_sandboxd_names" "$_sandboxd_old"
\builtin printf "_sandboxd_at=%q _sandboxd_back=%q\n" "$_sandboxd_at" "${OLDPWD-}"
[ "${#DIRSTACK[@]}" -lt 2 ] || { \builtin printf "_sandboxd_stack=("; \builtin printf " %q" "${DIRSTACK[@]}"
\builtin printf ")\n"; }
\builtin declare -f
\builtin printf "set --"; [ $# = 0 ] || \builtin printf " %q" "$@"; \builtin printf "\n"
\builtin umask -p
\builtin printf "\n#cwd %s\n#end\n" "$_sandboxd_at"
} >/proc/self/fd/62 2>/dev/null
_sandboxd_save=
"""
_BASH_PRELUDE: Final = r"""_sandboxd_command=$1 _sandboxd_plain=$SHELLOPTS:$BASHOPTS
set --
unset -v PATH
. /proc/self/fd/61
unset -v _sandboxd_names _sandboxd_old _sandboxd_status _sandboxd_lost
if cd -- "$_sandboxd_at"; then OLDPWD=$_sandboxd_back; else _sandboxd_lost=$_sandboxd_at; fi
[ -n "$_sandboxd_back" ] || unset -v OLDPWD
_sandboxd_name=${#_sandboxd_stack[@]}
while [ "$((--_sandboxd_name))" -gt 0 ]; do pushd -n "${_sandboxd_stack[_sandboxd_name]}"; done >/dev/null
unset -v _sandboxd_name _sandboxd_stack
"""
_SH_SAVE: Final = r"""_sandboxd_status=$?
{ printf "_sandboxd_set() {\n"; set +o; trap; printf ":\n}\n"
set +aeuxvf
for _sandboxd_name in ${_sandboxd_names-}; do
eval "if [ \"\${_sandboxd_old_$_sandboxd_name+x}\" ]
then $_sandboxd_name=\$_sandboxd_old_$_sandboxd_name; else unset $_sandboxd_name; fi
unset _sandboxd_old_$_sandboxd_name"
done
_sandboxd_at=${_sandboxd_dir-$PWD} _sandboxd_back=${OLDPWD-} _sandboxd_aliases=$(alias)
[ -z "$_sandboxd_aliases" ] || { _sandboxd_ifs=$IFS; IFS="
"; for _sandboxd_name in $_sandboxd_aliases; do printf "alias %s\n" "${_sandboxd_name#alias }"; done
IFS=$_sandboxd_ifs; }
unset _sandboxd_save _sandboxd_command _sandboxd_dir _sandboxd_lost _sandboxd_names _sandboxd_name
unset _sandboxd_aliases _sandboxd_ifs
set; export -p; readonly -p
printf "umask "; umask
printf "\n#cwd %s\n#end\n" "$_sandboxd_at"
} >/proc/self/fd/62 2>/dev/null
_sandboxd_save=
"""
_SH_PRELUDE: Final = r"""_sandboxd_first=$1
set --
unset PATH
. /proc/self/fd/61
_sandboxd_command=$_sandboxd_first
unset _sandboxd_first _sandboxd_names _sandboxd_status _sandboxd_lost
if cd -- "$_sandboxd_at"; then OLDPWD=$_sandboxd_back; else _sandboxd_lost=$_sandboxd_at; fi
[ -n "$_sandboxd_back" ] || unset OLDPWD
"""
#: A directory that is gone must not become another one silently: the command may be `rm -rf *`.
_LOST_CWD: Final = r"""if [ -n "${_sandboxd_lost-}" ]; then
_sandboxd_dir=%s
[ "$_sandboxd_lost" != "$_sandboxd_dir" ] || _sandboxd_dir=/
_sandboxd_command='printf "sandboxd: cannot enter %%s, the working directory of the session: the command was not run, \
and the session goes on in %%s\n" "$_sandboxd_lost" "$_sandboxd_dir" >&2; exit 126'
fi
"""
_OWN_CWD: Final = r"""_sandboxd_dir=$_sandboxd_at _sandboxd_lost=
cd -- %s || { _sandboxd_lost=%s
_sandboxd_command='printf "sandboxd: cannot enter %%s\n" "$_sandboxd_lost" >&2; exit 126'; }
"""
#: Options come last: they may be such that nothing else of the prelude would work.
_BASH_END: Final = """trap 'eval "$_sandboxd_save"' EXIT
_sandboxd_set
"""
_SH_END: Final = """_sandboxd_set
trap 'eval "$_sandboxd_save"' EXIT
case $- in *x*) set +x; _sandboxd_command="set -x;$_sandboxd_command" ;; esac
"""
#: What the shell is started with; on one line, so that its messages say "line 1" for the command's first.
_MAIN: Final = (
    '. /proc/self/fd/60 2>/dev/null; eval " $_sandboxd_command"; { eval "$_sandboxd_save"; } 2>/dev/null; '
    'exit "$_sandboxd_status"'
)
#: Around the prelude of a command that leaves no state. bash takes it from BASH_ENV, so that the command is all that
#: it was started with: it counts its lines, and becomes its last program, as it would outside of a session.
_BASH_BESIDE: Final = "exec 59>&2 2>/dev/null; unset -v BASH_ENV; BASH_ARGV0=bash\n"
_BASH_BESIDE_END: Final = '_sandboxd_set; exec 2>&59 59>&-; unset -f _sandboxd_set; eval "$_sandboxd_command"\n'
_SH_BESIDE: Final = '. /proc/self/fd/60 2>/dev/null; eval " $_sandboxd_command"\n'
_SH_END_BESIDE: Final = """_sandboxd_set; unset -f _sandboxd_set
case $- in *x*) set +x; _sandboxd_command="set -x;$_sandboxd_command" ;; esac
"""


def quote(text: str) -> str:
    """Return `text` as one word of a shell program."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def is_bash(shell: str) -> bool:
    """Return whether a shell, named by its path, is bash."""
    return shell.endswith("/bash")


def argv(shell: str, line: str) -> tuple[str, ...]:
    """Return the words that run a command in a session."""
    options = ("--norc", "--noprofile") if is_bash(shell) else ()
    return (shell, *options, "-c", _MAIN, shell.rpartition("/")[2], line)


def beside(shell: str, line: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the words and the environment that run a command with a session's state, to which it leaves none.

    The line is the shell's own program: where that ends in a program the shell becomes it, which so gets the signals
    that ask it to end, and whose end is the process's.
    """
    if is_bash(shell):
        return (shell, "--norc", "--noprofile", "-c", line), {"BASH_ENV": "/proc/self/fd/60"}
    return (shell, "-c", _SH_BESIDE + line, shell.rpartition("/")[2]), {}


def first_state(shell: str, env: dict[str, str], cwd: str) -> str:
    """Return the state of a session that has not run anything: exported variables and a working directory."""
    options = "shopt -s expand_aliases" if is_bash(shell) else ":"
    exports = "".join(f"export {name}={quote(value)}\n" for name, value in env.items())
    return f"_sandboxd_set() {{ {options}; }}\n{exports}_sandboxd_at={quote(cwd)} _sandboxd_back=\n#cwd {cwd}\n#end\n"


def prelude(
    shell: str, env: dict[str, str], cwd: str | None, home: str, *, saves: bool = True, line: str | None = None
) -> str:
    """Return what a shell runs before a command.

    Args:
        shell: its path.
        env: variables for this command alone.
        cwd: a working directory for this command alone.
        home: where the session goes on when its working directory is gone.
        saves: whether the command leaves its state to the session.
        line: the command, where it is too long to be the shell's argument.
    """
    bash = is_bash(shell)
    parts = [_BASH_PRELUDE if bash else _SH_PRELUDE]
    if line is not None and saves:
        parts[0] = parts[0].replace("$1", quote(line), 1)
    if cwd is None:
        parts.append(_LOST_CWD % quote(home))
    else:
        parts.append(_OWN_CWD % (quote(cwd), quote(cwd)))
    parts.append(_bash_overlay(env) if bash else _sh_overlay(env))
    if saves:
        parts.append(f"_sandboxd_save={quote(_BASH_SAVE if bash else _SH_SAVE)}\n")
        parts.append(_BASH_END if bash else _SH_END)
    elif bash:
        parts = [_BASH_BESIDE, *parts, _BASH_BESIDE_END]
    else:
        parts.append(_SH_END_BESIDE)
    if line is not None and not saves:
        own = f"_sandboxd_command={quote(line)}\n"
        # sh evaluates that variable before its line too (`_SH_BESIDE`), for what must come first.
        parts.append(own if bash else f"_sandboxd_command={quote(own)}$_sandboxd_command\n")
    return "".join(parts)


def _bash_overlay(env: dict[str, str]) -> str:
    if not env:
        return ""
    names = " ".join(env)
    exports = "".join(f"export {name}={quote(value)}\n" for name, value in env.items())
    return f"_sandboxd_names='{names}' _sandboxd_old=$(declare -p {names})\n{exports}"


def _sh_overlay(env: dict[str, str]) -> str:
    parts = [f"_sandboxd_names='{' '.join(env)}'\n"] if env else []
    for name, value in env.items():
        parts.append(f'[ -z "${{{name}+x}}" ] || _sandboxd_old_{name}=${name}\nexport {name}={quote(value)}\n')
    return "".join(parts)


def read_end(tail: bytes) -> tuple[bool, str | None]:
    """Return whether the end of a state says that it is whole, and the working directory that it names.

    The directory is what the sandbox's programs say it is; None where it is no absolute path of UTF-8 text.
    """
    if not tail.endswith(END_MARK):
        return False, None
    _, found, rest = tail.rpartition(CWD_MARK)
    try:
        path = rest[: -len(END_MARK)].decode()
    except UnicodeDecodeError:
        return True, None
    return True, path if found and path.startswith("/") and path.isprintable() else None
