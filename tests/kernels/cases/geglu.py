from tests.kernels.cases.swiglu import WRT, inputs
from tests.kernels.harness import ALL, Case

TANH = {"approximate": "tanh"}
CASES = [
    Case("geglu", "plain", inputs, WRT, dtypes=ALL, far=WRT),
    Case("geglu", "tanh", inputs, WRT, TANH),
    Case("geglu", "no rows", inputs, WRT, size=0),
    Case("geglu", "tanh, odd width", lambda g, n: inputs(g, n, 37), WRT, TANH, size=9),
]
