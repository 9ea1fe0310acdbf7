"""Code that the tests of whole optimizers share."""
