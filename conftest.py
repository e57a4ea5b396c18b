"""Options of tests and benchmarks: ``--device cuda`` runs kernels on a GPU, ``--seed`` repeats a run's inputs."""


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the kernel tests and benchmarks: cpu or cuda")
    parser.addoption("--seed", type=int, help="of random inputs; by default new in every run, and printed")
