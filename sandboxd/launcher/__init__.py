"""The launcher: the one privileged process. It forks a sandbox's init and holds what only root may hold.

Theory of operation
-------------------
The daemon execs `python -I -m sandboxd.launcher` before any trio runs and before it drops privileges. The first thing
that the launcher does is to fork the zygote, from which every creation is forked (`zygote.py`): what the zygote has
loaded is in the memory of every init, what the launcher loads later is not. The launcher is single-threaded and never
executes anything: it waits in one loop (`linux/eventloop.py`) for requests of a closed list (`server.py`), and has each
creation forked into a process that turns itself into a sandbox's init by the named steps of `plan.py`. It is told ids,
names and numbers only, never env or secrets.

    server.py       the operations, and what is done in a pause
    zygote.py       the process that creations are forked from
    create.py       creations under way; create_child.py is one of them: the two forks and the status pipe
    teardown.py     the one way out, for the running and the failed
    plan.py         spec -> ordered steps (pure)
    steps.py        what steps share; filesystem.py and privilege.py are the steps
    idranges.py     disjoint uid ranges and the user namespaces that map them
    cgroups.py      the sandboxes' cgroups
    storage/        storage drivers: where a sandbox's own files live, and what limits them
    records.py      what must survive the launcher
    profiles.py     seccomp profiles, compiled once at the start
    rootfs.py       which rootfs there are
"""
