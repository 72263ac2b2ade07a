"""The network: two processes of the launcher's that keep CAP_NET_ADMIN alone, and make veths and rules for sandboxes.

    launcher ── orders, descriptors of a sandbox's network ──▶ server.py ──▶ rtnetlink: the host's, the router's, a
             ◀── answers, denied attempts (denied.py) ──          │          sandbox's (veth.py, netlink.py); nft: the
                                                                  │          host's table (guard.py)
                                                                  └───────▶ its hand, in the router: nft (nft.py)

They are processes of their own because what they load is large and none of the launcher's business, and because one
reads what sandboxes sent: the heads of packets that were denied. They enter no namespace: a socket of netlink belongs
to the namespace that it was made in, so the launcher makes those of the router and of a sandbox; nft makes its own, so
who runs it for the router was started in there.

**The router** is a network namespace between the host and all sandboxes, which the launcher keeps by a mount
(launcher/router.py): it outlives every process of ours. A **veth** is a pair of virtual Ethernet devices between it and
one sandbox, the **uplink** one between it and the host. Nothing else is on either: no bridge, no ARP, no neighbour
discovery. All ends have fixed addresses and permanent neighbour entries; the router and the host route one address
(/32, /128) to each sandbox. So there is no layer two between sandboxes that would have to be guarded.

**The rules** that count are the router's (rules.py). It is nobody's network but ours, so each of its chains drops what
comes to its end, and a veth that was not admitted yet, or whose process died in between, is dead: there is no moment in
which one exists and is not filtered. What comes out of a veth must have that veth's own addresses, Ethernet and IP, or
is dropped before connection tracking. What is forwarded goes through a chain by its source: `internet`, which keeps
everything but public addresses out of reach, or one of the sandbox's own, its allow list, as interval sets (boxes.py).
What is not allowed is refused with an ICMP message and told, once in ten seconds for each destination. The namespace
forwards nothing before its table is there. Nothing that is done to the host's rules reaches it.

**The host** has a table too (guard.py), which translates sandboxes' addresses and guards a second time: its own
addresses but for listed ones, and special ones that only a translation of its own would lead to. What the router has to
know of the host, its addresses and the networks on its interfaces, stands in sets that follow the kernel's
notifications (watch.py); those also tell of somebody who took away the host's table, the uplink or a route, which are
made anew at once. Until then answers do not come back, and what is on a list may leave the host untranslated; nothing
else passes. What remains: an address that the host has got since is known to the router some milliseconds later, or
with the next process where none ran; meanwhile the host's table alone keeps it, and who flushes that in this very
moment opens it to the mode `internet`.

**State** is the launcher's. Processes begin with all there is, in one transaction: the table anew, with every sandbox
in it. What was asked of one that died is asked of its successor. Veths that an earlier version made in the host's own
namespace are moved into the router; until then the host's table drops what comes out of them.

Messages are msgpack over a SOCK_SEQPACKET: `[sequence, operation, state]` in, `[sequence, error or None, result]` out,
and `[0, "denied", {…}]` unasked; `begin` has every sandbox's state in a file in memory. Orders come in batches, and
each batch is one call of nft; what is on the host's interfaces is read when that changed, once for a batch.
"""
