"""The tests, installed with the package so that they can be run wherever it is."""
