"""One policy for ten robot tasks, learned from few demonstrations: modules against plain networks, by weightings.

`python -m bench.metaworld run` makes the demonstrations and the runs that are missing (it may be stopped and started
again at any time), `python -m bench.metaworld report` makes tables and a figure of the runs that are there.
"""
