"""``python -m mt2o_ext.demo``: a Pareto front of digit classifiers, with transfer and without, from real data."""
