"""One thread for every test and for the processes it starts.

Small tensors gain nothing from a second one, and two threads beside loader workers on two cores wait for each other
(libgomp waits busily): the suite would take many times as long. It must stand before torch is imported.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
