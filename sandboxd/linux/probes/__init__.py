"""What this host can do for sandboxes: the questions that `sandboxd doctor` asks, and what the answers mean.

Theory of operation. Each module here looks at one side of the host, in two halves. `gather` collects facts: it reads
files and, as root, tries things in short-lived children with namespaces of their own (`child`), since what a kernel
promises and what this kernel, container or security module lets happen differ. `evaluate` is pure: facts in, features
out, each with what was found, what that means for whoever runs sandboxes, and the remedy. So every answer that a host
could give is tested on one host.

Nothing on the host changes: no mount outside a private mount namespace, no cgroup, no loop device, no sysctl; the one
directory that the overlay's trial needs is removed again. (The kernel may load a module of its own when overlayfs or
nftables is first used, as it would for any program.)

Unlike its parent package this one knows sandboxd's words, since it advises on them. Nothing but the doctor imports it.
"""
