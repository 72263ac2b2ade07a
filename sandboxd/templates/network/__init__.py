"""The network: a process of the launcher's that keeps CAP_NET_ADMIN alone, and makes links and rules for sandboxes.

    launcher ── orders, descriptors of a sandbox's network ──▶ this process ──▶ rtnetlink (links.py), nft (rules.py)
             ◀── answers, denied attempts (denied.py) ──

It is a process of its own because what it loads is large and none of the launcher's business, and because it reads
what sandboxes sent: the heads of packets that were denied. It enters no namespace: a socket of rtnetlink belongs to
the namespace that it was made in, and the launcher makes one inside the sandbox's.

**A link** is a pair of virtual Ethernet devices between the host and one sandbox, and nothing else is on it: no bridge,
no ARP, no neighbour discovery. Both ends have fixed addresses and permanent neighbour entries; the host routes one
address (/32, /128) to each. So there is no layer two between sandboxes that would have to be guarded.

**The rules** are one table (rules.py). Whatever comes out of a link must have that link's own addresses, Ethernet and
IP, or is dropped before connection tracking. What is forwarded goes through a chain by its source: `internet`, which
keeps everything but public addresses out of reach, or one of the sandbox's own, its allow list. What is not allowed is
refused with an ICMP message and told, once in ten seconds for each destination.

**State** is the launcher's. This process begins with an empty table and is told what there is; should it end, the
rules in the kernel stay as they are, and its successor makes them anew in one transaction.

Messages are msgpack over a SOCK_SEQPACKET: `[sequence, operation, state]` in, `[sequence, error or None, result]` out,
and `[0, "denied", {…}]` unasked. They come in batches, and each batch is one call of nft.
"""
