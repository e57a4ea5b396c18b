"""``afn serve``: one model behind OpenAI's API, and a page. Heavy imports wait until it runs."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

from afn_model.cli.messages import install_extra
from afn_model.cli.options import positive

if TYPE_CHECKING:
    import torch
    from fastapi import FastAPI
    from torch import Tensor

    from afn_model.prompt.processor import AFNextProcessor
    from afn_model.serve.speaking import SpeechThread

NEEDED = ("fastapi", "uvicorn", "multipart", "prometheus_client", "websockets")
LOCAL = ("127.0.0.1", "localhost", "::1")


def add_serve(parser: ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default 8000")
    parser.add_argument("--name", metavar="NAME", help="of the model, as clients say it; default that of its folder")
    told = "clients must send it; may be given several times; default the environment's AFN_API_KEYS (with commas)"
    parser.add_argument("--api-key", action="append", default=[], metavar="KEY", help=told)
    told = "recordings may be fetched from this host by address; default none are fetched"
    parser.add_argument("--allow-host", action="append", default=[], metavar="HOST", help=told)
    parser.add_argument("--slots", type=positive, default=64, metavar="N", help="answers that grow at the same time")
    told = "64 tokens each, of keys and values; default what is free on a GPU"
    parser.add_argument("--pages", type=positive, metavar="N", help=told)
    parser.add_argument("--kv-dtype", choices=("auto", "fp8"), default="auto", help="of keys and values")
    told = "answers' bits depend on their requests alone; costs speed"
    parser.add_argument("--deterministic", action="store_true", help=told)
    parser.add_argument("--max-requests", type=positive, default=256, metavar="N", help="more are answered 429")
    parser.add_argument("--max-body-mb", type=positive, default=512, metavar="N", help="of a request")
    parser.add_argument("--decoders", type=positive, default=2, metavar="N", help="processes that decode recordings")
    told = "seconds that answers may take when the server is told to end; default 10"
    parser.add_argument("--grace", type=positive, default=10, metavar="S", help=told)
    told = "uploads are kept there too, for other servers and later ones; with --replicas a folder of its own if none"
    parser.add_argument("--upload-folder", metavar="DIR", help=told)
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    told = "API of a text model that answers where a request wants captions; its key is the environment's AFN_THEN_KEY"
    parser.add_argument("--then-url", metavar="URL", help=told)
    parser.add_argument("--then-model", metavar="NAME", help="of it; default the first that is listed there")
    parser.add_argument("--log-content", action="store_true", help="log prompts and answers")
    told = "keys and values that do not fit go to this folder, and are there after a restart; default nowhere"
    parser.add_argument("--offload", metavar="DIR", help=told)
    parser.add_argument("--offload-gb", type=positive, default=64, metavar="N", help="of its files; default 64")
    told = "of host memory before the folder; default 4"
    parser.add_argument("--offload-memory-gb", type=memory, default=4, metavar="N", help=told)
    parser.add_argument("--voice", metavar="DIR", help="voice folder; answers may then be asked for in sound")
    told = "answers that are said at the same time; default 16"
    parser.add_argument("--voice-streams", type=positive, default=16, metavar="N", help=told)
    told = (
        "engines, on a GPU each where there are GPUs, by Ray Serve on this machine or its cluster; default one, no Ray"
    )
    parser.add_argument("--replicas", type=positive, metavar="N", help=told)


def memory(text: str) -> int:
    """A whole number of GB, 0 for none; argparse names the option."""
    return 0 if text == "0" else positive(text)


def serve(args: Namespace) -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ValueError(f"the server needs {', '.join(missing)}: {install_extra('serve')}")
    args.api_key = args.api_key or [key for key in os.environ.get("AFN_API_KEYS", "").split(",") if key]
    if args.host not in LOCAL and not args.api_key and not args.quiet:
        print("Warning: other machines may ask, and no key is asked for (--api-key)", file=sys.stderr)
    if args.replicas is not None:
        from afn_model.serve.replicas import serve_replicas

        args.upload_folder = args.upload_folder or tempfile.mkdtemp(prefix="afn-uploads-")
        serve_replicas(args, args.replicas, host=args.host, port=args.port, requests=args.max_requests)
        return
    from afn_model.serve.web import bound, run

    with bound(args.host, args.port) as listening:  # before the model is read
        app, host = application(args), f"[{args.host}]" if ":" in args.host else args.host
        address = f"http://{host}:{listening.getsockname()[1]}"

        def started() -> None:
            if not args.quiet:
                print(f"Serving {app.state.server.settings.name} on {address}", file=sys.stderr, flush=True)
            if args.open:
                Timer(0.0, webbrowser.open, [address]).start()

        run(app, listening, started)


def application(args: Namespace) -> FastAPI:
    """The application that the options of a command line ask for, with its model read."""
    import torch

    from afn_model.cli.session import open_session
    from afn_model.infer.offload import HostPages, page_folder
    from afn_model.infer.pages import PAGE
    from afn_model.serve.app import create_app
    from afn_model.serve.fingerprint import facts, fingerprint, weights_digest
    from afn_model.serve.server import Server
    from afn_model.serve.settings import Settings
    from afn_model.session import engine_of

    with open_session(args) as session:
        model, processor = session.model, session.processor
        mode = {"kv_dtype": args.kv_dtype, "deterministic": args.deterministic}
        depends, pages = facts(model, weights=weights_digest(model), **mode), None
        if args.offload is not None:
            folder, memory = page_folder(Path(args.offload), page=PAGE, **depends), args.offload_memory_gb << 30
            pages = HostPages(memory, folder, args.offload_gb << 30, device=str(model.device))
        # Before the engine, whose pages take what is free.
        speech = None if args.voice is None else speech_thread(args, processor, model.device)
        engine = engine_of(
            model,
            processor,
            pages=args.pages,
            slots=args.slots,
            deterministic=args.deterministic,
            offload=pages,
            kv_dtype=torch.float8_e4m3fn if args.kv_dtype == "fp8" else None,
        )
    settings = Settings(
        name=args.name or os.path.basename(os.path.abspath(args.model)),
        keys=tuple(args.api_key),
        hosts=tuple(args.allow_host),
        upload_folder=args.upload_folder,
        max_seconds=processor.max_seconds,
        max_requests=args.max_requests,
        max_body_bytes=args.max_body_mb << 20,
        decoders=args.decoders,
        stop_seconds=args.grace,
        then_url=args.then_url,
        then_model=args.then_model,
        then_key=os.environ.get("AFN_THEN_KEY"),
        log_content=args.log_content,
    )
    return create_app(Server(engine, settings, voice=speech, fingerprint=fingerprint(depends)))


def speech_thread(args: Namespace, processor: AFNextProcessor, device: torch.device) -> SpeechThread:
    """What says answers in the voice of a folder."""
    from afn_model.serve.speaking import SpeechThread
    from afn_model.speech.conversation import spoken_answers
    from afn_model.speech.speaker import SpeakerPrompt, speaker_prompt
    from afn_model.speech.voice import AFVoice

    voice = AFVoice.from_pretrained(args.voice, device=device)
    answers = spoken_answers(voice, processor.tokenizer, streams=args.voice_streams)

    def prompt(pcm: Tensor, rate: int, consent: str) -> SpeakerPrompt:
        return speaker_prompt(voice.codec, pcm, rate, consent=consent)

    return SpeechThread(answers, prompt, places=args.voice_streams)
