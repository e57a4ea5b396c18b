"""Options of tests and benchmarks: ``--device cuda`` runs kernels on a GPU, ``--seed`` repeats a run's inputs."""


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the kernel tests and benchmarks: cpu or cuda")
    parser.addoption("--part", default="0/1", help="of the tests, by their names' hash: 0/2 and 1/2 are all of them")
    parser.addoption("--seed", type=int, help="of random inputs; by default new in every run, and printed")
