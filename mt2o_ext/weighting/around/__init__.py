"""Weightings around a weighting: each changes what another one sees or answers, one file for each."""
