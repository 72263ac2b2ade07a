"""`sandboxd` on a host that has a user `sandboxd`: the daemon's own code is the real one, only the user is made up."""

from __future__ import annotations

import grp
import os
import pwd

from sandboxd.cli.main import main

#: An id that nobody has.
UID = 64_998
real_user, real_group = pwd.getpwnam, grp.getgrnam


def getpwnam(name: str) -> pwd.struct_passwd:
    """Know one user more."""
    if name != "sandboxd":
        return real_user(name)
    return pwd.struct_passwd((name, "x", UID, UID, "", "/nonexistent", "/bin/false"))


def getgrnam(name: str) -> grp.struct_group:
    """Know one group more."""
    return real_group(name) if name != "sandboxd" else grp.struct_group((name, "x", UID, []))


pwd.getpwnam, grp.getgrnam = getpwnam, getgrnam
os.initgroups = lambda user, gid: os.setgroups([gid])

if __name__ == "__main__":
    main()
