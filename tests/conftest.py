"""What every test stands on."""

from __future__ import annotations

import signal

# A shell starts what runs in its background with SIGINT ignored, and that is inherited: the programs that tests start
# and interrupt would not hear it. A handler is not inherited; execve resets it to the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
