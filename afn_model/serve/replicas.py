"""Several engines behind one address, by Ray Serve: a replica is a process with a server of its own."""

from __future__ import annotations

from argparse import Namespace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI


def make(build: str, args: Namespace) -> FastAPI:
    """Calls ``module:function`` in the replica's process."""
    import importlib

    module, function = build.split(":")
    return getattr(importlib.import_module(module), function)(args)


def deployment(args: Namespace, replicas: int, *, requests: int, build: str = "afn_model.cli.serve:application") -> Any:
    """What Ray Serve runs.

    Args:
        args: what ``build`` makes an application of.
        replicas: how many.
        requests: that one of them is given at the same time.
        build: ``module:function``.
    """
    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    gpu = 1 if ray.cluster_resources().get("GPU", 0) >= replicas else 0
    options = {
        "num_replicas": replicas,
        "max_ongoing_requests": requests,
        "ray_actor_options": {"num_gpus": gpu, "num_cpus": 1},
    }

    def application() -> FastAPI:  # called in each replica
        return make(build, args)

    return serve.deployment(serve.ingress(application)(), name="afn", **options).bind()


def serve_replicas(args: Namespace, replicas: int, *, host: str, port: int, requests: int) -> None:
    """Serves until it is interrupted.

    Raises:
        ValueError: Ray is not installed.
    """
    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise ValueError('--replicas needs Ray Serve: pip install "ray[serve]"')
    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    if not ray.is_initialized():
        ray.init(log_to_driver=not args.quiet)
    serve.start(http_options={"host": host, "port": port})
    serve.run(deployment(args, replicas, requests=requests), blocking=True)
