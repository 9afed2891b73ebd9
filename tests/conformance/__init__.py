"""The conformance suite: what a backend must do to be right, whoever wrote it.

``python -m plugrad.tests --backend NAME`` runs it. It is driven by the records of the kernels, so that a new kernel
is covered the day it is declared, and knows a backend by its name alone:

    subject.py     the backend under test: its arrays, calls on it, and what to tell about a call that went wrong
    cases.py       inputs: sizes around every boundary, memory layouts, options, special values
    checks/        what is demanded, one function each; `CHECKS` is the table of them
    accuracy.py    errors in ulp against 50 digits, as a report and as a check of the budgets in the records

`test_conformance` runs every check for every kernel and dtype of the backends chosen with ``--backend``.
"""
