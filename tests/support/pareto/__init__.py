"""Code that the tests of fronts share."""
