"""Code that the tests of weightings share."""
