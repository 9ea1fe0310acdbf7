"""Our implementations beside numbers that others have published, as near to their settings as two cores allow.

`python -m bench.parity run` makes the runs that are missing (one core, about an hour and a half; it may be stopped and
started again at any time), `python -m bench.parity report` makes the tables of what is there.
"""
