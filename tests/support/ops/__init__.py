"""Code that the tests of the operators share."""
