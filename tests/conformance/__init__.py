"""The conformance suite: the checks that every backend must pass.

``python -m plugrad.tests --backend NAME`` runs it. The records in `plugrad.tests.records` describe the kernels: a
kernel is tested once it has a record. The suite knows a backend by its name alone:

    subject.py     the backend under test: its arrays, calls on it, and notes on failed calls
    cases.py       inputs: sizes around every boundary, memory layouts, options, special values
    checks/        one function for each requirement; `CHECKS` is the table
    accuracy.py    errors in ulp against 50 digits, as a report and as a check of the budgets in the records
    fuzz.py        random calls: random_calls.py and other_calls.py make them, spoiling.py spoils them,
                   repeated_calls.py repeats plain ones with one thing changed, judging.py judges the results

`test_conformance` runs every check for every kernel and dtype of the backends chosen with ``--backend``.
"""
