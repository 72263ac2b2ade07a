"""Storage drivers: where a sandbox's own files live, and what limits them.

A driver's tree is root's, 0700: files in it are owned by the constant on-disk range, so a setuid file made inside
a sandbox belongs to nobody on the host, and no host user can reach it.

    driver.py       what the launcher asks of a driver
    btrfs.py        a subvolume and a quota group a sandbox: hard limits
    image.py        the pool of btrfs.py, where the host has none: a sparse file, loop-mounted
    directory.py    a plain directory, where btrfs cannot be had: no limits
    room.py         the part of the host's disk that is kept back
    choice.py       which of them
"""
