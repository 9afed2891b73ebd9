"""The hyperbolic tangent."""

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import Budget, Mistake, Record, double
from plugrad.tests.records.relu import sample

RECORDS = (
    Record(
        function=K.tanh,
        sample=sample,
        oracle=lambda x: (np.tanh(double(x)),),
        textbook=np.tanh,
        exact=lambda mpmath, x, label: [mpmath.tanh(v) for v in x],
        symbolic=lambda sympy, x: [sympy.tanh(a) for a in x],
        mistakes=(Mistake({"x": "text"}, TypeError, "tanh: x: expected .*, got dtype <U4"),),
        passes=2,
        operations=5,
        tolerance=4,
        budget=Budget(ulp=4.0, of="result"),
    ),
    Record(
        function=K.tanh_backward,
        sample=lambda *given: {"dy": sample(*given)["x"], "y": np.tanh(sample(*given)["x"])},
        oracle=lambda dy, y: (double(dy) * (1 - double(y) ** 2),),
        textbook=lambda dy, y: dy * (1 - y**2),
        mistakes=(Mistake({"y": [1.0]}, ValueError, r"tanh_backward: y: expected the shape of dy, \(2, 3\), got \(1"),),
        domain={"y": (-1.0, 1.0)},
        passes=3,
        operations=3,
        tolerance=4,
    ),
)
