"""Code that the tests of other people's loops share."""
