"""``python -m mt2o_ext.demo``: Pareto fronts of digit classifiers, and connection strength, on real data."""
