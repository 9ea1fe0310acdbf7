"""The gradients of several tasks: taken from autograd, kept, weighed and combined, with or without an optimizer."""
