"""One thread for every test and for the processes it starts, and Ctrl-C for all of them.

Small tensors gain nothing from a second thread, and two of them beside loader workers on two cores wait for each other
(libgomp waits busily): the suite would take many times as long. It must stand before torch is imported.

A shell without job control lets its background jobs ignore Ctrl-C, and so would the processes that tests stop with it.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
