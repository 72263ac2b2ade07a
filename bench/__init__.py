"""Figures of sandboxd beside its peers, measured in one run.

Theory of operation. `python -m bench` starts everything that it measures, on private directories, and removes it:

    bench ── SDK, HTTP over unix sockets ──▶ a sandboxd daemon of its own; dockerd (in a den)
      │ JSON lines
      └──────────▶ runner.py, one for each *den* (a mount and a pid namespace of its own)
                      └─ bwrap, crun, runc, podman, nsenter …: started, timed and read here

A **den** (den.py) is where a peer lives: when its runner ends, however it ends, every process and mount in it ends
too, so nothing is left behind, also after Ctrl-C. Runners time command-line peers next to them, so all are timed
alike; the SDK and HTTP contenders are timed in this process, where a user's program would be. sandboxd's daemon
is in no den, since it tells by pids which id ranges other daemons of the host hold; its cgroup is killed instead.

A **contender** (contender.py) can be run `cold` (create, first output, destroy) or `held` (running, idle, ready for
exec). A **figure** (figures/) asks all contenders in turn, round by round and in an order shuffled anew each round,
so that the machine's other work hits all alike; ratios are formed within a round (stats.py).
"""
