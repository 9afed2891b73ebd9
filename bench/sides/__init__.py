"""Who is measured: a module each, with ``prepare(case)``, which returns the function to time.

That function computes the case once and returns what it computed, in the order of the kernel's results; a step of
training returns the parameters.
"""
