"""The benchmark behind what this package says about MT2O: fronts of K models by every way to train them that we know.

`python -m bench.pareto run` trains (resumable), `python -m bench.pareto report` makes tables and figures of what is
there. README.md in bench/results/pareto says how to read them.
"""
