"""Which questions about names may be asked for a sandbox, and what of an answer it may have. Pure.

The nameservers are the host's, and may well be private ones, which know the names and addresses of a whole network.
A sandbox has of them what the internet's would say:

- types of records of a stated list; what lies in a private zone, and has no address to be judged by, is not asked for;
- reverse names of public addresses alone;
- of an answer, the records that hang on the name that was asked for, by a chain of CNAMEs, and are of the type that
  was asked for: nothing of another owner, nothing of another section;
- no address that is never reached, in whatever record it stands: hints in HTTPS and SVCB are taken out.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import dns.exception
import dns.name
import dns.rdata
import dns.rdatatype
import dns.reversename
import dns.rrset
from dns.rdtypes.svcbbase import MandatoryParam, ParamKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..allow import Address

ADDRESSES: Final = (dns.rdatatype.A, dns.rdatatype.AAAA)
#: What a sandbox with the internet may ask for. Others have no data.
TYPES: Final = frozenset(
    (*ADDRESSES, dns.rdatatype.CNAME, dns.rdatatype.PTR, dns.rdatatype.MX, dns.rdatatype.TXT, dns.rdatatype.SRV)
    + (dns.rdatatype.CAA, dns.rdatatype.HTTPS, dns.rdatatype.SVCB)
)
#: Zones that are nobody's on the internet (RFC 6761, 6762 with its appendix G, 8375; ICANN's `internal`).
PRIVATE_ZONES: Final = tuple(
    dns.name.from_text(text)
    for text in ("local", "localhost", "internal", "intranet", "private", "corp", "home", "lan", "home.arpa", "test")
)
_REVERSE_ZONES: Final = (dns.reversename.ipv4_reverse_domain, dns.reversename.ipv6_reverse_domain)
#: Records with a name in them that somebody will go to.
_TARGETS: Final = {
    dns.rdatatype.CNAME: "target",
    dns.rdatatype.PTR: "target",
    dns.rdatatype.MX: "exchange",
    dns.rdatatype.SRV: "target",
    dns.rdatatype.HTTPS: "target",
    dns.rdatatype.SVCB: "target",
}
#: Parameters of HTTPS and SVCB that hold no address.
_PARAMETERS: Final = frozenset(
    (ParamKey.MANDATORY, ParamKey.ALPN, ParamKey.NO_DEFAULT_ALPN, ParamKey.PORT, ParamKey.ECH)
)
#: CNAMEs that are followed in one answer.
MAX_CHAIN: Final = 16


def why_not_asked(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, out_of_reach: Callable[[Address], str | None]
) -> str | None:
    """Return why a question has no data without being asked, "" where nobody need hear of it; None: it may be asked.

    `out_of_reach` says why an address is never reached, or None.
    """
    if kind not in TYPES:
        return ""
    if any(name.is_subdomain(zone) for zone in _REVERSE_ZONES):
        if kind != dns.rdatatype.PTR:
            return ""
        try:
            address = ipaddress.ip_address(dns.reversename.to_address(name))
        except (dns.exception.DNSException, ValueError):
            return ""
        return out_of_reach(address)
    if kind in ADDRESSES:
        return None
    return "it is in a private zone" if is_private(name) else None


def is_private(name: dns.name.Name) -> bool:
    """Return whether a name is of a private zone, or has one label, as hosts of one's own network have."""
    return len(name.labels) == 2 or any(name.is_subdomain(zone) for zone in PRIVATE_ZONES)


def chain(asked: dns.rrset.RRset, answer: Iterable[dns.rrset.RRset]) -> list[dns.rrset.RRset]:
    """Return the record sets of an answer that hang on the question: CNAMEs in their order, then what was asked for.

    Where the way leads through a private zone, addresses are told as the asked name's own, and all else is left out.
    """
    by_key: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset] = {}
    for rrset in answer:
        if rrset.rdclass == asked.rdclass:
            by_key.setdefault((rrset.name, rrset.rdtype), rrset)
    owner, found, wanted = asked.name, list[dns.rrset.RRset](), None
    for _ in range(MAX_CHAIN):
        wanted = by_key.get((owner, asked.rdtype))
        alias = by_key.pop((owner, dns.rdatatype.CNAME), None)
        if wanted is not None or alias is None:
            break
        found.append(alias)
        owner = alias[0].target
    inside = any(_leads_inside(alias[0].target) for alias in found)
    if inside and (wanted is None or asked.rdtype not in ADDRESSES):
        return []
    if inside and wanted is not None:
        return [dns.rrset.from_rdata_list(asked.name, wanted.ttl, list(wanted))]
    return found if wanted is None else [*found, wanted]


def without_places(rrset: dns.rrset.RRset) -> list[dns.rdata.Rdata]:
    """Return a set's records (of no address type) that name no private place, hints of addresses taken out."""
    field = _TARGETS.get(rrset.rdtype)
    rows = [row for row in rrset if field is None or not _leads_inside(getattr(row, field))]
    if rrset.rdtype in (dns.rdatatype.HTTPS, dns.rdatatype.SVCB):
        return [_without_hints(row) for row in rows]
    return rows


def _leads_inside(target: dns.name.Name) -> bool:
    return target != dns.name.root and is_private(target)


def _without_hints(row: dns.rdata.Rdata) -> dns.rdata.Rdata:
    kept = {key: value for key, value in row.params.items() if key in _PARAMETERS}  # type: ignore[attr-defined]
    mandatory = kept.pop(ParamKey.MANDATORY, None)
    if mandatory is not None and (still := [key for key in mandatory.keys if key in kept]):
        kept[ParamKey.MANDATORY] = MandatoryParam(still)  # type: ignore[no-untyped-call]
    return row.replace(params=kept)


def rows_in_reach(
    sets: Sequence[dns.rrset.RRset], why: Callable[[Address], str | None], most: int
) -> tuple[list[tuple[dns.rrset.RRset, list[dns.rdata.Rdata]]], str]:
    """Return each set with the records that may be told, `most` addresses altogether, and why an address was left out.

    Nothing is returned where addresses were all that there was and none may be told.
    """
    kept, count, refused = [], 0, ""
    for rrset in sets:
        if rrset.rdtype not in ADDRESSES:
            rows = without_places(rrset)
        else:
            rows = []
            for row in rrset:
                reason = why(ipaddress.ip_address(row.address))
                refused = reason or refused
                if not reason and count < most:
                    count += 1
                    rows.append(row)
        if rows:
            kept.append((rrset, rows))
    return ([], refused) if refused and not count else (kept, refused)
