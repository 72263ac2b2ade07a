"""What runs inside a sandbox: its init.

Theory of operation
-------------------
init is pid 1 of the sandbox, a fork of the zygote (`launcher/zygote.py`) that has run the steps of
`launcher/plan.py`: it has the sandbox's root and nothing from the host, seven capabilities in the sandbox's own user
namespace, and three descriptors: the socket on which the daemon connects, a cgroup2 mount whose root is the
sandbox's own group, and its event loop's (`linux/eventloop.py`). It has one thread, imports nothing more, and never
opens a file that could block it.

    init.py        the loop, the link, the operations
    link_server.py one connection of the daemon
    commands.py    the operations on commands, the table of them, the reaper
    processes.py   one command: start, restart, signals, end
    output.py      its pipes into its journal; followers.py: the journal to the daemon
    stdin_writer.py  its standard input
    terminals.py   its terminal, where it has one
    leaf_cgroups.py  its cgroup leaf
    endings.py     which processes of its tree were signalled to end, and their deadline
    contexts.py    the operations on code contexts; worker.py: one interpreter, its pipes and their order
    spawn.py       the child's side of a start; standby.py: a child that waits to become the next command
    files.py       opens files for the daemon, which does the reading and writing
    users.py       /etc/passwd and /etc/group, parsed (never through nss, which loads the rootfs's libraries)

Several daemons may connect one after the other (after a restart); running programs do not notice.
"""
