"""The training loop and what it needs: schedule, optimiser, checkpoints, devices, processes, logging.

Knows no method, no task and no data: whatever has the form of `engine.trainable` can be trained. Read `loop.py`
first; everything else is a part that it names.
"""
