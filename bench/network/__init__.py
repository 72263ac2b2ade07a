"""A sandbox's link beside plain veth with NAT."""
