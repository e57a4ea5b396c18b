"""The option that tests and benchmarks share: ``--device cuda`` runs kernels on a GPU."""


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the kernel tests and benchmarks: cpu or cuda")
